"use strict";
// The table works without this; with it, headings sort and the rows download as they stand.
{
  const table = document.getElementById("table");
  const body = table.tBodies[0];
  const headings = [...table.tHead.rows[0].cells];
  const status = document.getElementById("status");
  const value = (row, column) => row.cells[column].dataset.value;

  const compare = (column, isNumber, direction) => (a, b) => {
    const [left, right] = [value(a, column), value(b, column)];
    if (left === "" || right === "") return (left === "") - (right === "");
    return direction * (isNumber ? Number(left) - Number(right) : left.localeCompare(right, "en", { numeric: true }));
  };

  headings.forEach((heading, column) => {
    heading.firstElementChild.addEventListener("click", () => {
      const descending = heading.getAttribute("aria-sort") === "ascending";
      headings.forEach((other) => other.removeAttribute("aria-sort"));
      heading.setAttribute("aria-sort", descending ? "descending" : "ascending");
      const isNumber = heading.classList.contains("number");
      body.append(...[...body.rows].sort(compare(column, isNumber, descending ? -1 : 1)));
      status.textContent = `Sorted by ${heading.dataset.name}, ${descending ? "descending" : "ascending"}`;
    });
  });

  const quoted = (text) => (/[",\n\r]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text);
  const csv = () =>
    [headings.map((heading) => heading.dataset.name), ...[...body.rows].map((row) => headings.map((_, i) => value(row, i)))]
      .map((line) => line.map(quoted).join(",") + "\r\n").join("");

  const button = document.getElementById("download");
  button.hidden = false;
  button.addEventListener("click", () => {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob(["\ufeff" + csv()], { type: "text/csv;charset=utf-8" }));
    link.download = `${document.title.replace(/[^\w]+/g, "-").toLowerCase()}.csv`;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
    status.textContent = `${body.rows.length} rows downloaded`;
  });
}
