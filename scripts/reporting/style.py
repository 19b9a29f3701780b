"""The style and the script of every page. Python, since Flower's app bundle takes no other text."""

STYLE = r""":root{--ink:#1b1f24;--soft:#57606a;--paper:#fff;--line:#d8dee4;--main:#0b5cad;--other:#6e7781;--llm:#8250df;--sites:#1a7f37;--c2:#b35900;--c3:#a40e26;--c4:#1f6feb;--shade:#0004;--tile:#f6f8fa}
@media(prefers-color-scheme:dark){:root{--ink:#e6edf3;--soft:#9da7b3;--paper:#0d1117;--line:#30363d;--main:#6cb6ff;--other:#9da7b3;--llm:#c297ff;--sites:#57d364;--c2:#f0a35e;--c3:#ff8a8a;--c4:#79c0ff;--shade:#fff4;--tile:#161b22}}
*{box-sizing:border-box}
body{margin:0;background:var(--paper);color:var(--ink);font:16px/1.55 system-ui,sans-serif}
main{max-width:72rem;margin:0 auto;padding:1.5rem 1rem 4rem}
h1{font-size:1.7rem;line-height:1.25;margin:.2rem 0 .6rem}
h2{font-size:1.15rem;margin:2.2rem 0 .6rem}
.over{color:var(--soft);margin:0}
svg{width:100%;height:auto;font-size:13px}
svg text{fill:var(--ink)}
svg .axis,svg .small{fill:var(--soft);font-size:12px}
.grid{stroke:var(--line);stroke-width:1}
.curve{fill:none;stroke-width:2}
.curve.c0{stroke:var(--main)}
.curve.c1{stroke:var(--sites)}
.curve.c2{stroke:var(--c2)}
.curve.c3{stroke:var(--c3)}
.curve.c4{stroke:var(--llm)}
circle.c0,svg text.c0{fill:var(--main)}
circle.c1,svg text.c1{fill:var(--sites)}
circle.c2,svg text.c2{fill:var(--c2)}
circle.c3,svg text.c3{fill:var(--c3)}
circle.c4,svg text.c4{fill:var(--llm)}
rect.llm{fill:var(--llm)}
rect.clients{fill:var(--sites)}
rect.server{fill:var(--other)}
.key{display:inline-block;width:.9em;height:.9em;border-radius:2px;margin:0 .2em 0 .6em}
.key.llm{background:var(--llm)}
.key.clients{background:var(--sites)}
.wide{overflow-x:auto;background:linear-gradient(90deg,var(--paper) 30%,transparent),linear-gradient(270deg,var(--paper) 30%,transparent) 100% 0,linear-gradient(90deg,var(--shade),transparent),linear-gradient(270deg,var(--shade),transparent) 100% 0;background-repeat:no-repeat;background-size:3rem 100%,3rem 100%,.8rem 100%,.8rem 100%;background-attachment:local,local,scroll,scroll}
table{border-collapse:collapse;width:100%;font-size:.9rem}
th,td{text-align:left;vertical-align:top;padding:.35rem .6rem;border-bottom:1px solid var(--line)}
thead th{color:var(--soft);font-weight:600}
tbody th{font-weight:600}
pre{overflow-x:auto;font-size:.8rem;padding:1rem;border:1px solid var(--line);border-radius:6px}
summary{cursor:pointer}
h3{font-size:1rem;margin:1.4rem 0 .4rem}
.question{color:var(--soft);font-size:1.05rem;margin:.8rem 0 0}
.skip{position:absolute;left:-99em}
.skip:focus{left:1rem;top:.5rem;background:var(--paper);padding:.3rem .6rem;z-index:1}
a{color:var(--main)}
:focus-visible{outline:3px solid var(--main);outline-offset:2px}
nav ul{list-style:none;display:flex;flex-wrap:wrap;gap:.2rem 1rem;padding:.5rem 0;margin:1rem 0 0;border-top:1px solid var(--line);border-bottom:1px solid var(--line);font-size:.9rem}
nav a{display:inline-block;padding:.25rem 0}
.wide svg{display:block}
svg.broad{min-width:36rem}
.over,pre{overflow-wrap:anywhere}
pre{white-space:pre-wrap}
thead button{all:unset;cursor:pointer;font:inherit;color:inherit}
thead button:focus-visible{outline:3px solid var(--main)}
[aria-sort=ascending] button::after{content:" \25B2"}
[aria-sort=descending] button::after{content:" \25BC"}
td,th{white-space:nowrap}
td.words{white-space:normal;min-width:16rem}
.cards{list-style:none;padding:0;margin:.4rem 0;display:grid;gap:.6rem;grid-template-columns:repeat(auto-fill,minmax(min(100%,27rem),1fr))}
.cards li{border:1px solid var(--line);border-radius:6px;padding:.6rem .8rem}
.cards p{margin:0;font-size:.85rem;color:var(--soft)}
.cards .of{color:var(--ink);font-weight:600}
blockquote{margin:.3rem 0;overflow-wrap:anywhere}
.lanes{display:flex;justify-content:space-between;gap:1rem;font-weight:600;font-size:.9rem}
.lanes span{border:2px solid var(--sites);border-radius:6px;padding:.2rem .6rem;width:42%}
.lanes span+span{border-color:var(--llm);text-align:right}
.flow{list-style:none;margin:0;padding:.4rem 0;counter-reset:step}
.flow li{display:grid;padding:.35rem 0;position:relative}
.flow .lane{font-size:.75rem;color:var(--soft)}
.flow .cost{font-size:.85rem;color:var(--soft)}
.flow .sites{width:62%;border-left:6px solid var(--sites);padding-left:.7rem}
.flow .cloud{width:62%;margin-left:auto;border-right:6px solid var(--llm);padding-right:.7rem;text-align:right}
.flow .up,.flow .down{text-align:center;padding:.35rem 1.2rem .5rem}
.flow .up::after,.flow .down::after{content:"";height:0;border-top:2px solid var(--sites);margin:.25rem 0 0}
.flow .down::after{border-color:var(--llm)}
.flow .up::before,.flow .down::before{content:"";position:absolute;bottom:.06rem;border:.42rem solid transparent}
.flow .up::before{right:.5rem;border-left:.7rem solid var(--sites)}
.flow .down::before{left:.5rem;border-right:.7rem solid var(--llm)}
.tree ul{list-style:none;padding-left:1.1rem;border-left:1px solid var(--line);margin:.1rem 0}
.tree p{margin:.15rem 0}
.tree .node{overflow-wrap:anywhere}
.mode{font-size:.75rem;border:1px solid;border-radius:4px;padding:0 .3rem;color:var(--soft)}
.mode.private{color:var(--sites)}
.mode.collaborative{color:var(--llm)}
.figures{font-size:.8rem;color:var(--soft)}
.chosen>p,.chosen>details>summary{font-weight:600}
summary{padding:.2rem 0}
@media(prefers-reduced-motion:no-preference){html{scroll-behavior:smooth}}
@media print{nav,.skip{display:none}.wide svg{min-width:0}}
.tiles{list-style:none;padding:0;margin:1rem 0;display:grid;gap:.6rem;grid-template-columns:repeat(auto-fit,minmax(min(100%,10rem),1fr))}
.tiles li{background:var(--tile);border:1px solid var(--line);border-radius:8px;padding:.6rem .8rem}
.tiles b{display:block;font-size:1.7rem;line-height:1.25}
.tiles span{display:block;font-size:.85rem;color:var(--soft)}
.chart{margin:.6rem 0 0}
.chart .row{display:grid;grid-template-columns:minmax(6rem,13rem) 1fr 3.4rem;gap:.8rem;align-items:center;min-height:1.9rem}
.chart.time .row{grid-template-columns:minmax(6rem,13rem) 1fr 13rem;min-height:1.5rem;font-size:.85rem}
.chart .name{text-align:right;overflow-wrap:anywhere;font-size:.9rem}
.chart .value{font-size:.85rem;font-variant-numeric:tabular-nums}
.chart .main .name,.chart .main .value{font-weight:700}
.chart .track{position:relative;align-self:stretch;min-height:1.2rem}
.chart .track>*,.legend i{position:absolute}
.chart .grid{top:0;bottom:0;border-left:1px solid var(--line)}
.chart .dot,.legend .dot{width:.5rem;height:.5rem;border-radius:50%;background:var(--other);opacity:.5;top:50%;margin:-.25rem 0 0 -.25rem}
.chart .bar,.legend .bar{height:2px;background:var(--other);top:50%;margin-top:-1px}
.chart .mean,.legend .mean{width:.4rem;height:1rem;border-radius:2px;background:var(--other);top:50%;margin:-.5rem 0 0 -.2rem}
.chart .main .dot,.chart .main .bar,.chart .main .mean,.legend .mean{background:var(--main)}
.chart .axis{color:var(--soft);font-size:.8rem;min-height:1.4rem}
.chart .axis span span{transform:translateX(-50%);white-space:nowrap}
.chart .span{top:.25rem;bottom:.25rem;border-radius:2px;background:var(--other)}
.chart .span.llm{background:var(--llm)}
.chart .span.clients{background:var(--sites)}
.legend{font-size:.8rem;color:var(--soft);margin:.2rem 0 1rem}
.legend i{position:static!important;display:inline-block;margin:0 .2rem 0 .8rem!important;vertical-align:middle}
.legend .bar{width:1.4rem}
@media(max-width:40rem){.chart .row,.chart.time .row{grid-template-columns:1fr auto;gap:0 .6rem;padding:.25rem 0}.chart .name{text-align:left;grid-column:1}.chart .value{grid-column:2;grid-row:1;text-align:right}.chart .track{grid-column:1/-1;min-height:1.3rem}.chart .axis .name,.chart .axis .value{display:none}.chart .axis span span:first-child{transform:none}}
tbody th{position:sticky;left:0;background:var(--paper)}
@media(max-width:40rem){h1{font-size:1.3rem}}
"""

SCRIPT = r"""// Better with script: a click or Enter on a column's head sorts the table. Everything is readable without.
for (const head of document.querySelectorAll("thead th")) {
  const table = head.closest("table"), body = table.tBodies[0], column = head.cellIndex;
  if (body.rows.length < 3) continue;
  const button = document.createElement("button");
  button.type = "button";
  button.append(...head.childNodes);
  head.append(button);
  const key = (row) => {
    const said = row.cells[column].textContent, number = parseFloat(said.replace("+", ""));
    return Number.isNaN(number) ? said : number;
  };
  button.addEventListener("click", () => {
    const up = head.getAttribute("aria-sort") !== "ascending";
    for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", up ? "ascending" : "descending");
    const order = (a, b) => (typeof a === typeof b ? (a > b) - (a < b) : typeof a === "number" ? -1 : 1);
    const rows = [...body.rows].sort((a, b) => (up ? 1 : -1) * order(key(a), key(b)));
    body.append(...rows);
  });
}
"""
