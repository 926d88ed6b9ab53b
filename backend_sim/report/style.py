"""Style sheet and script of the page. Colours tell apart without red and green; the script only sorts."""

from __future__ import annotations

STYLE = (
    """
:root{--paper:#fff;--ink:#1d2329;--soft:#5b6570;--line:#d9dee3;--panel:#f5f7f9;
--c1:#3a76b8;--c2:#e09a3e;--c3:#2f9c80;--c4:#c4513f;--c5:#8861ab;--c6:#c9b01f;--c7:#c3cad1;--c8:#54b3cf;--c9:#e4e8ec}
@media (prefers-color-scheme:dark){:root{--paper:#14181c;--ink:#e3e8ec;--soft:#9aa5b0;
--line:#343c44;--panel:#1c2228;--c1:#6aa5e3;--c2:#e8ad5e;--c3:#52bd9f;--c4:#e4796a;
--c5:#ae8cd0;--c6:#dcc84e;--c7:#545e68;--c8:#7fcbe2;--c9:#3d4751}}
*{box-sizing:border-box}
body{margin:0 auto;max-width:1180px;padding:24px 20px 60px;background:var(--paper);color:var(--ink);
font:14px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,"DejaVu Sans",sans-serif}
h1{font-size:24px;margin:0;overflow-wrap:anywhere}
h2{font-size:18px;margin:44px 0 6px;padding-top:12px;border-top:1px solid var(--line)}
p{margin:6px 0 10px;max-width:95ch}.soft,figcaption{color:var(--soft)}
nav{margin:14px 0 0}nav a{margin-right:16px;white-space:nowrap}a{color:var(--c1)}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(150px,1fr));gap:10px;
margin:18px 0 8px;padding:0}
.tiles div{background:var(--panel);border-radius:8px;padding:10px 12px}
.tiles dt{color:var(--soft);font-size:12px}
.tiles dd{margin:0;font-size:19px;font-weight:600;font-variant-numeric:tabular-nums}
.tiles dd small{display:block;font-size:12px;font-weight:400;color:var(--soft)}
figure{margin:8px 0 16px;overflow-x:auto}svg{display:block;width:100%;min-width:760px;height:auto}
svg text{fill:var(--ink);font-size:11px;font-family:inherit}
text.l{text-anchor:end}text.k{text-anchor:middle;fill:var(--soft);font-size:10px}text.t{font-weight:600}
text.n{font-size:9px;fill:var(--soft)}text.e{text-anchor:end}text.m{text-anchor:middle}
.g{stroke:var(--line);fill:none;stroke-width:.7}.h{fill:transparent}.h:hover{fill:var(--ink);fill-opacity:.09}
.roof{stroke:var(--ink);fill:none;stroke-width:1.6}.dot{stroke:var(--paper);stroke-width:.8}
.r{fill-opacity:.62;stroke:var(--paper);stroke-width:.5}.r:hover{fill-opacity:1}
.keys{display:flex;flex-wrap:wrap;gap:2px 14px;align-items:baseline;font-size:12.5px}
.legend{display:flex;flex-wrap:wrap;gap:2px 14px;list-style:none;margin:0;padding:0}
i{display:inline-block;width:10px;height:10px;border-radius:2px;margin-right:5px}
.scroll{overflow-x:auto;margin:8px 0 14px}
table{border-collapse:collapse;font-size:12.5px;font-variant-numeric:tabular-nums}
th,td{padding:3px 9px;text-align:right;border-bottom:1px solid var(--line);
white-space:nowrap;vertical-align:top}
th{color:var(--soft);font-weight:600;vertical-align:bottom;white-space:normal;min-width:52px}
th.s,td.s{text-align:left}td.w{white-space:normal;min-width:420px}th.on{color:var(--ink)}
.live th{cursor:pointer}tbody tr:hover{background:var(--panel)}
details{margin:6px 0 12px}summary{cursor:pointer;color:var(--c1)}dl.machine{columns:3;font-size:12.5px}
dl.machine div{break-inside:avoid}dl.machine dt,dl.machine dd{display:inline;margin:0}
dl.machine dt{color:var(--soft)}
"""
    + "".join(f".c{index}{{fill:var(--c{index});background:var(--c{index})}}\n" for index in range(1, 10))
    + """
@media (max-width:700px){dl.machine{columns:1}}
@media print{body{max-width:none;padding:0;font-size:11px}nav{display:none}
table{font-size:9px}h2{break-after:avoid}
th,td{padding:1px 4px}td.w{min-width:0}svg{min-width:0}.scroll,figure{overflow:visible}
tr,i,.tiles div{break-inside:avoid}
*{print-color-adjust:exact;-webkit-print-color-adjust:exact}}
"""
)

SCRIPT = """
document.querySelectorAll("table").forEach(function (table) {
  var body = table.tBodies[0], heads = table.tHead.rows[0].cells;
  table.classList.add("live");
  function value(row, column) {
    var cell = row.cells[column], text = cell.dataset.v || cell.textContent.replace(/,/g, "");
    return text !== "" && isFinite(text) ? Number(text) : text;
  }
  Array.prototype.forEach.call(heads, function (head, column) {
    head.addEventListener("click", function () {
      var down = head.dataset.down !== "1";
      Array.prototype.forEach.call(heads, function (other) { other.classList.remove("on"); });
      head.classList.add("on");
      head.dataset.down = down ? "1" : "0";
      Array.prototype.slice.call(body.rows).sort(function (a, b) {
        var x = value(a, column), y = value(b, column);
        var numbers = typeof x === "number" && typeof y === "number";
        var order = numbers ? x - y : String(x).localeCompare(String(y));
        return down ? -order : order;
      }).forEach(function (row) { body.appendChild(row); });
    });
  });
});
"""
