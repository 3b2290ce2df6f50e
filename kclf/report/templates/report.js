(() => {
  "use strict";
  const byId = (id) => document.getElementById(id);
  const items = [...document.querySelectorAll("#gallery li")];
  const [actual, predicted, wrongOnly] = ["actual", "predicted", "wrong-only"].map(byId);
  if (actual) {  // numbers are not chosen by their text
    for (const [select, key] of [[actual, "actual"], [predicted, "predicted"]]) {
      const there = [...new Set(items.map((item) => item.dataset[key]))].sort((a, b) => a.localeCompare(b));
      for (const name of there) select.add(new Option(name, name));
    }
    function choose(select, name) {
      if (name && ![...select.options].some((option) => option.value === name)) select.add(new Option(name, name));
      select.value = name;
    }
    function refresh() {
      let count = 0;
      for (const item of items) {
        const { actual: truth, predicted: answer } = item.dataset;
        item.hidden = Boolean((actual.value && actual.value !== truth) || (predicted.value && predicted.value !== answer) || (wrongOnly.checked && truth === answer));
        count += !item.hidden;
      }
      byId("count").textContent = count === 1 ? "1 photo" : `${count} photos`;
    }
    function filterPhotos(truth, answer) {
      choose(actual, truth);
      choose(predicted, answer);
      wrongOnly.checked = false;
      refresh();
    }
    for (const control of [actual, predicted, wrongOnly]) control.addEventListener("change", refresh);
    byId("all").addEventListener("click", () => filterPhotos("", ""));
    for (const link of document.querySelectorAll("a[data-actual]")) {
      link.addEventListener("click", () => filterPhotos(link.dataset.actual, link.dataset.predicted));
    }
    document.addEventListener("photos", (event) => {
      filterPhotos(...event.detail);
      byId("photos").scrollIntoView();
    });
  }
  byId("heat")?.addEventListener("change", (event) => byId("gallery").classList.toggle("no-heat", !event.target.checked));
  for (const sortable of document.querySelectorAll("table.sortable")) {
    const heads = [...sortable.querySelectorAll("thead th")];
    const value = (row, column) => {
      const cell = row.children[column];
      return cell.dataset.value === undefined ? cell.textContent : Number(cell.dataset.value);
    };
    const compare = (a, b) => {
      if (typeof a === "string") return a.localeCompare(b);
      return (Number.isNaN(a) ? -1 : a) - (Number.isNaN(b) ? -1 : b);
    };
    heads.forEach((head, column) => head.querySelector("button").addEventListener("click", () => {
      const up = head.getAttribute("aria-sort") !== "ascending";
      for (const other of heads) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", up ? "ascending" : "descending");
      const rows = [...sortable.tBodies[0].rows].sort((a, b) => (up ? 1 : -1) * compare(value(a, column), value(b, column)));
      sortable.tBodies[0].append(...rows);
    }));
  }
})();
