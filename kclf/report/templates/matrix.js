(() => {
  "use strict";
  const { names, cells, orders, worst } = JSON.parse(document.getElementById("matrix-data").textContent);
  const byId = (id) => document.getElementById(id);
  const holder = byId("matrix");
  const said = byId("said");
  const totals = names.map(() => 0);
  const table = new Map(cells.map(([actual, predicted, photos]) => {
    totals[actual] += photos;
    return [actual * names.length + predicted, photos];
  }));
  const largest = Math.max(...cells.map((cell) => cell[2]));
  let shown = [];
  let cursor = [0, 0];
  let geometry = { cell: 20, margin: 100 };

  const svg = (tag, attributes, parent) => {
    const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
    for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
    parent.append(node);
    return node;
  };

  function draw(order) {
    const only = byId("worst")?.checked ? new Set(worst) : null;
    shown = orders[order].filter((place) => !only || only.has(place));
    const longest = holder.parentElement.clientWidth < 520 ? 14 : 22;
    const margin = 14 + 8 * Math.min(longest, Math.max(...shown.map((place) => names[place].length)));
    const room = (holder.parentElement.clientWidth - margin - 12) / shown.length;
    const cell = Math.max(shown.length > 60 ? 11 : 16, Math.min(shown.length > 5 ? 40 : 64, Math.floor(room)));
    const side = cell * shown.length;
    geometry = { cell, margin };
    cursor = [0, 0];
    holder.replaceChildren();
    const picture = svg("svg", { width: margin + side + 6, height: margin + side + 6, "aria-hidden": "true" }, holder);
    svg("rect", { class: "frame", x: margin, y: margin, width: side, height: side }, picture);
    const font = Math.min(13, cell - 1);
    shown.forEach((place, number) => {
      const middle = margin + (number + 0.5) * cell + font / 3;
      const name = names[place].length > longest ? names[place].slice(0, longest - 1) + "…" : names[place];
      svg("text", { class: "name row", x: margin - 5, y: middle, "text-anchor": "end", "font-size": font }, picture).textContent = name;
      svg("text", { class: "name column", transform: `translate(${middle} ${margin - 5}) rotate(-90)`, "font-size": font }, picture).textContent = name;
      shown.forEach((other, column) => {
        const photos = table.get(place * names.length + other);
        if (!photos) return;
        const wrong = place !== other;
        const strength = Math.min(1, (wrong ? 0.3 : 0.12) + (wrong ? 1.1 : 0.75) * Math.sqrt(photos / largest));
        svg("rect", { x: margin + column * cell, y: margin + number * cell, width: cell - 1, height: cell - 1, fill: `rgba(var(--${wrong ? "wrong" : "right"}), ${strength.toFixed(2)})` }, picture);
        if (cell >= 15) svg("text", { class: strength > 0.6 ? "strong" : "", x: margin + (column + 0.5) * cell, y: middle, "text-anchor": "middle", "font-size": Math.min(12, cell * 0.62) }, picture).textContent = photos;
      });
    });
    svg("rect", { class: "cross", width: cell - 1, height: cell - 1, visibility: "hidden" }, picture);
  }

  function point(row, column) {
    cursor = [Math.max(0, Math.min(shown.length - 1, row)), Math.max(0, Math.min(shown.length - 1, column))];
    const [actual, predicted] = cursor.map((number) => shown[number]);
    const photos = table.get(actual * names.length + predicted) || 0;
    const share = totals[actual] ? ` (${Math.round((100 * photos) / totals[actual])} %)` : "";
    said.textContent = actual === predicted
      ? `${names[actual]}: ${photos} of ${totals[actual]} photos right${share}`
      : `${names[actual]} taken for ${names[predicted]}: ${photos} of ${totals[actual]} photos${share}`;
    const cross = holder.querySelector(".cross");
    cross.setAttribute("x", geometry.margin + cursor[1] * geometry.cell);
    cross.setAttribute("y", geometry.margin + cursor[0] * geometry.cell);
    cross.setAttribute("visibility", "visible");
    holder.querySelectorAll("text.row").forEach((text, number) => text.classList.toggle("on", number === cursor[0]));
    holder.querySelectorAll("text.column").forEach((text, number) => text.classList.toggle("on", number === cursor[1]));
  }

  function place(event) {
    const box = holder.querySelector("svg").getBoundingClientRect();
    const at = (position) => Math.floor((position - geometry.margin) / geometry.cell);
    const [row, column] = [at(event.clientY - box.top), at(event.clientX - box.left)];
    return row >= 0 && column >= 0 && row < shown.length && column < shown.length ? [row, column] : null;
  }

  const open = () => document.dispatchEvent(new CustomEvent("photos", { detail: cursor.map((number) => names[shown[number]]) }));
  holder.addEventListener("pointermove", (event) => { const cell = place(event); if (cell) point(...cell); });
  holder.addEventListener("click", (event) => { const cell = place(event); if (cell) { point(...cell); open(); } });
  holder.addEventListener("focus", () => { if (holder.matches(":focus-visible")) point(...cursor); });
  const moves = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };
  holder.addEventListener("keydown", (event) => {
    if (moves[event.key]) {
      event.preventDefault();
      point(cursor[0] + moves[event.key][0], cursor[1] + moves[event.key][1]);
      const { cell, margin } = geometry;
      holder.scrollTo({ left: margin + cursor[1] * cell - holder.clientWidth / 2, top: margin + cursor[0] * cell - holder.clientHeight / 2 });
    } else if (event.key === "Enter" || event.key === " ") {
      event.preventDefault();
      open();
    }
  });

  const orderButtons = [...document.querySelectorAll("[data-order]")];
  const redraw = () => draw(orderButtons.find((button) => button.getAttribute("aria-pressed") === "true").dataset.order);
  for (const button of orderButtons) {
    button.addEventListener("click", () => {
      for (const other of orderButtons) other.setAttribute("aria-pressed", String(other === button));
      redraw();
    });
  }
  byId("worst")?.addEventListener("change", redraw);
  let width = innerWidth;
  addEventListener("resize", () => {
    // A phone changes the height alone when its address bar hides: nothing to draw again.
    if (innerWidth !== width) redraw();
    width = innerWidth;
  });
  redraw();
})();
