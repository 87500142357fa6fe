// Tables that are sorted by a click on the head of a column.

function sortable(table) {
  const body = table.tBodies[0];
  [...table.tHead.rows[0].cells].forEach((head, column) => {
    const name = head.textContent;
    if (!name) return;
    const button = make("button", { type: "button", onclick: () => sortBy(table, body, head, column) }, name);
    head.replaceChildren(button);
  });
}

function sortBy(table, body, head, column) {
  const down = head.getAttribute("aria-sort") !== "descending" && body.rows[0].cells[column].dataset.value !== undefined
    || head.getAttribute("aria-sort") === "ascending";
  for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
  head.setAttribute("aria-sort", down ? "descending" : "ascending");
  const rows = [...body.rows].map((row) => [cellValue(row.cells[column]), row]);
  rows.sort(([a], [b]) => compareValues(a, b) * (down ? -1 : 1));
  body.append(...rows.map(([, row]) => row));
}

function cellValue(cell) {
  return cell.dataset.value === undefined ? cell.textContent : +cell.dataset.value;
}

/** Numbers before texts; texts as people sort them (rank 2 before rank 10). */
function compareValues(a, b) {
  if (typeof a === typeof b && typeof a === "number") return a - b;
  if (typeof a !== typeof b) return typeof a === "number" ? -1 : 1;
  return a.localeCompare(b, undefined, { numeric: true });
}
