// What a file holds: names in groups, attributes.

#include "io/h5_impl.hpp"

namespace cpstep {
namespace {

herr_t keep_link(hid_t, char const* name, H5L_info_t const*, void* out) {
    static_cast<std::vector<std::string>*>(out)->emplace_back(name);
    return 0;
}

herr_t keep_attribute(hid_t, char const* name, H5A_info_t const*, void* out) {
    static_cast<std::vector<std::string>*>(out)->emplace_back(name);
    return 0;
}

h5::ObjectId open_object(h5::OpenFile const& file, std::string const& path) {
    require(h5::object_exists(file, path), file.code(), "{}: {}: no such object",
            file.path.string(), path);
    h5::PropertiesId const access = h5::access_properties(file, H5P_LINK_ACCESS);
    return h5::ObjectId(
        h5::check(file, H5Oopen(file.id.get(), path.c_str(), access.get()), path, "open it"));
}

}  // namespace

std::vector<std::string> H5File::children(std::string const& path) const {
    h5::ObjectId const group = open_object(*impl_, path);
    std::vector<std::string> names;
    h5::check(*impl_,
              H5Literate(group.get(), H5_INDEX_NAME, H5_ITER_INC, nullptr, keep_link, &names), path,
              "list it");
    return names;
}

std::vector<std::string> H5File::attribute_names(std::string const& path) const {
    h5::ObjectId const object = open_object(*impl_, path);
    std::vector<std::string> names;
    h5::check(
        *impl_,
        H5Aiterate2(object.get(), H5_INDEX_NAME, H5_ITER_INC, nullptr, keep_attribute, &names),
        path, "list its attributes");
    return names;
}

bool H5File::is_group(std::string const& path) const {
    return H5Iget_type(open_object(*impl_, path).get()) == H5I_GROUP;
}

}  // namespace cpstep
