// The style sheet of the HTML report: colours by role, light and dark.
#pragma once

namespace cpstep {

inline constexpr char const* html_style = R"(
:root{color-scheme:light dark;--back:#fff;--card:#f6f7f9;--text:#1b2430;--soft:#5a6675;--line:#d9dee5;--compute:#3a78c9;
--exposed:#d9682b;--comm:#23907f;--rest:#b9c1cb;--pass:#dbe6f5;--good:#1d7f46;--bad:#c03030;--inside:#fff;--heat:#c0451b}
@media (prefers-color-scheme:dark){:root{--back:#14181d;--card:#1c2229;--text:#e3e8ee;--soft:#9aa6b4;--line:#343d48;
--compute:#6ea4ea;--exposed:#ee8a4e;--comm:#45b8a4;--rest:#56616e;--pass:#27374b;--good:#58c487;--bad:#f07070;
--inside:#10141a;--heat:#ff8a52}}
body{margin:0 auto;max-width:1080px;padding:24px 20px 60px;background:var(--back);color:var(--text);
font:15px/1.45 system-ui,sans-serif}
h1{font-size:22px;margin:0 0 4px}h2{font-size:17px;margin:34px 0 2px}p{margin:2px 0 8px;color:var(--soft)}
.card{background:var(--card);border:1px solid var(--line);border-radius:8px;padding:10px 12px;overflow-x:auto}
.verdict{font-weight:700}.verdict.good{color:var(--good)}.verdict.bad{color:var(--bad)}
table+table{margin-top:14px}table{border-collapse:collapse;width:100%;font-size:13.5px}td,th{padding:3px 10px;text-align:right;
border-bottom:1px solid var(--line);font-variant-numeric:tabular-nums;white-space:nowrap}
td:first-child,th:first-child{text-align:left}th{color:var(--soft);font-weight:600}tr:last-child td{border-bottom:0}
td.bad{color:var(--bad);font-weight:700}ul{margin:4px 0;padding-left:20px}
.key{display:inline-block;width:11px;height:11px;border-radius:2px;margin:0 4px 0 12px;vertical-align:-1px}
svg{width:100%;height:auto;display:block;min-width:640px}svg text{fill:var(--text);font:12.5px system-ui,sans-serif}
svg .num{fill:var(--soft);font-size:11px}svg .mid{text-anchor:middle}svg .end{text-anchor:end}
svg .inside{fill:var(--inside);font-size:11.5px}svg .bad{fill:var(--bad)}
.grid{stroke:var(--line);stroke-width:1}.axis{stroke:var(--soft);stroke-width:1}.one{stroke:var(--soft);stroke-width:1.5}
.gate{stroke:var(--bad);stroke-width:1.5;stroke-dasharray:5 4}.median{stroke:var(--text);stroke-width:2}
.span{fill:var(--compute);fill-opacity:.18}.sample{fill:var(--compute);fill-opacity:.6}.interval{fill:var(--compute);
fill-opacity:.4}.estimate{fill:var(--compute)}
.compute,.key.compute{fill:var(--compute);background:var(--compute)}.exposed,.key.exposed{fill:var(--exposed);
background:var(--exposed)}.comm,.key.comm{fill:var(--comm);background:var(--comm)}.rest,.key.rest{fill:var(--rest);
background:var(--rest)}.pass,.key.pass{fill:var(--pass);background:var(--pass)}
.phase0{fill:#8c6bb8}.phase1{fill:#4f86c6}.phase2{fill:#8a97a6}.phase3{fill:#2f9e8a}.phase4{fill:#c9a227}
.phase5{fill:#b5713c}.phase6{fill:#b2507f}
.heat0{fill:var(--heat);fill-opacity:.05}.heat1{fill:var(--heat);fill-opacity:.16}.heat2{fill:var(--heat);fill-opacity:.28}
.heat3{fill:var(--heat);fill-opacity:.4}.heat4{fill:var(--heat);fill-opacity:.53}.heat5{fill:var(--heat);fill-opacity:.67}
.heat6{fill:var(--heat);fill-opacity:.83}.heat7{fill:var(--heat)}
)";

}  // namespace cpstep
