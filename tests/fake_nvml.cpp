// A management library with one GPU that has lost some symbols: what test_nvml opens.
#include <cstdio>
#include <cstring>

extern "C" {

static int begun = 0;

int nvmlInit_v2() {
    ++begun;
    return 0;
}
int nvmlShutdown() {
    --begun;
    return 0;
}
int fake_nvml_begun() {
    return begun;
}
char const* nvmlErrorString(int rc) {
    return rc == 3 ? "Not Supported" : rc == 6 ? "Not Found" : "?";
}
int nvmlSystemGetDriverVersion(char* text, unsigned length) {
    std::snprintf(text, length, "550.54.15");
    return 0;
}
int nvmlDeviceGetHandleByPciBusId_v2(char const* bus, void** device) {
    static int gpu = 0;
    *device = &gpu;
    return std::strcmp(bus, "0000:1B:00.0") == 0 ? 0 : 6;
}
int nvmlDeviceGetUUID(void*, char* text, unsigned length) {
    std::snprintf(text, length, "GPU-abc");
    return 0;
}
int nvmlDeviceGetMigMode(void*, unsigned*, unsigned*) {
    return 3;
}
int nvmlDeviceGetComputeMode(void*, int* mode) {
    *mode = 3;
    return 0;
}
int nvmlDeviceGetComputeRunningProcesses_v2(void*, unsigned* count, void* infos) {
    if (*count < 2) {
        return 7;
    }
    std::memset(infos, 0, 2 * 24);
    *count = 2;
    return 0;
}
int nvmlDeviceGetTotalEccErrors(void*, int type, int counter, unsigned long long* errors) {
    *errors = type == 1 && counter == 0 ? 5 : 1000;
    return 0;
}
int nvmlDeviceGetRemappedRows(void*, unsigned* corrected, unsigned* uncorrected, unsigned* pending,
                              unsigned* failed) {
    *corrected = 9;
    *uncorrected = 8;
    *pending = 1;
    *failed = 0;
    return 0;
}
int nvmlDeviceGetCurrentClocksThrottleReasons(void*, unsigned long long* reasons) {
    *reasons = 0x48;
    return 0;
}
int nvmlDeviceGetClockInfo(void*, int, unsigned* mhz) {
    static int looks = 0;
    *mhz = ++looks == 2 ? 1395 : 1410;
    return 0;
}
int nvmlDeviceGetPowerUsage(void*, unsigned* milliwatts) {
    *milliwatts = 123'400;
    return 0;
}
int nvmlDeviceGetNvLinkState(void*, unsigned link, int* active) {
    *active = link < 4 && link != 1 ? 1 : 0;
    return link < 6 ? 0 : 2;
}
int nvmlDeviceGetNvLinkVersion(void*, unsigned, unsigned* version) {
    *version = 4;
    return 0;
}
int nvmlDeviceGetNvLinkRemoteDeviceType(void*, unsigned, int* type) {
    *type = 2;
    return 0;
}
int nvmlDeviceGetP2PStatus(void*, void*, int, int* status) {
    *status = 3;
    return 0;
}
int nvmlDeviceGetTopologyCommonAncestor(void*, void*, int* level) {
    *level = 30;
    return 0;
}
}
