// Better with script: a click or Enter on a column's head sorts the table. Everything is readable without.
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
