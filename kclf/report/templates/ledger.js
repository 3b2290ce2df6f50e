(() => {
  "use strict";
  const records = JSON.parse(document.getElementById("ledger-rows").textContent);
  const rows = [...document.querySelectorAll("#ledger-table tbody tr")];
  const filter = document.getElementById("ledger-filter");
  const said = document.getElementById("ledger-said");
  const parts = (row) => [row.querySelector("select"), row.querySelector("input")];
  // Choices are kept by what was checked, not by the row: the page of another check has other rows.
  const key = "kclf-ledger " + (records.length ? records[0].folder : "");
  const identity = (row) => {
    const record = records[Number(row.dataset.row)];
    return JSON.stringify([record.path, record.problem, record.digest, record.num_bytes]);
  };
  let kept = {};
  try { kept = JSON.parse(localStorage.getItem(key)) || {}; } catch { /* no storage for this page: nothing is kept */ }

  const mark = (row) => {
    const [action, target] = parts(row);
    row.classList.toggle("changed", action.value !== "keep");
    kept[identity(row)] = [action.value, target.value];
  };
  const keep = () => {
    try { localStorage.setItem(key, JSON.stringify(kept)); } catch { /* as above */ }
    const changed = rows.filter((row) => row.classList.contains("changed")).length;
    said.textContent = changed + " of " + rows.length + " photos to change";
  };
  for (const row of rows) {
    const [action, target] = parts(row);
    const known = kept[identity(row)];
    if (known) [action.value, target.value] = known;
    mark(row);
    for (const part of [action, target]) part.addEventListener("change", () => { mark(row); keep(); });
  }
  keep();
  for (const problem of new Set(records.map((record) => record.problem))) {
    filter.add(new Option(problem.replaceAll("_", " "), problem));
  }
  filter.addEventListener("change", () => {
    for (const row of rows) row.hidden = Boolean(filter.value) && row.dataset.problem !== filter.value;
  });
  document.getElementById("accept").addEventListener("click", () => {
    for (const row of rows.filter((shown) => !shown.hidden)) {
      parts(row)[0].value = records[Number(row.dataset.row)].advice;
      mark(row);
    }
    keep();
  });
  // As escape_cell of kclf/_core/csv_files.py: no cell of text that a spreadsheet would compute.
  const computed = (text) => /^[' ]*[=+\-@\t\r\n＝＋－＠]/.test(text) && !/^[+-]?[\d.]+(e[+-]?\d+)?$/i.test(text);
  const escaped = (text) => (computed(text) ? "'" + text : text);
  const quoted = (text) => (/[",\r\n]/.test(text) ? '"' + text.replaceAll('"', '""') + '"' : text);
  const save = document.getElementById("save");
  save.addEventListener("click", () => {
    const columns = Object.keys(records[0]);
    const lines = records.map((record, place) => {
      const [action, target] = parts(rows[place]).map((part) => part.value);
      return columns.map((column) => quoted(escaped(String({ ...record, action, target }[column])))).join(",");
    });
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob(["\ufeff" + [columns.join(","), ...lines].join("\r\n") + "\r\n"], { type: "text/csv" }));
    link.download = save.dataset.file;
    link.click();
    said.textContent = `${save.dataset.file} saved`;
  });
})();
