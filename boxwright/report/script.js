for (const svg of document.querySelectorAll("svg[data-chart]")) {
  const { series, frame, title } = JSON.parse(svg.dataset.chart);
  const tip = svg.parentNode.appendChild(Object.assign(document.createElement("div"), { className: "tip" }));
  const cursor = svg.querySelector(".cursor");
  const places = [...new Set(series.flatMap((s) => s.x))].sort((a, b) => a - b);
  svg.addEventListener("pointermove", (event) => {
    const box = svg.getBoundingClientRect();
    const scale = svg.viewBox.baseVal.width / box.width;
    const share = ((event.clientX - box.left) * scale - frame.left) / (frame.right - frame.left);
    const wanted = frame.x[0] + share * (frame.x[1] - frame.x[0]);
    const x = places.reduce((best, place) => (Math.abs(place - wanted) < Math.abs(best - wanted) ? place : best));
    const at = frame.left + ((x - frame.x[0]) / (frame.x[1] - frame.x[0])) * (frame.right - frame.left);
    cursor.innerHTML = `<line x1="${at}" x2="${at}" y1="${frame.top}" y2="${frame.bottom}"/>`;
    tip.replaceChildren(`${title} ${+x.toPrecision(4)}`);
    for (const line of series) {
      const y = line.y[line.x.indexOf(x)];
      if (y === undefined || y === null) continue;
      const row = tip.appendChild(document.createElement("div"));
      row.appendChild(document.createElement("i")).style.background = `var(--series-${line.color})`;
      row.append(`${line.name} ${+y.toPrecision(4)}`);
    }
    tip.style.display = "block";
    const left = box.left - svg.parentNode.getBoundingClientRect().left + at / scale;
    const flip = left + tip.offsetWidth + 24 > svg.parentNode.clientWidth;
    tip.style.left = `${flip ? left - tip.offsetWidth - 12 : left + 12}px`;
    tip.style.top = `${box.top - svg.parentNode.getBoundingClientRect().top + 8}px`;
  });
  svg.addEventListener("pointerleave", () => { tip.style.display = "none"; cursor.innerHTML = ""; });
}
for (const image of document.querySelectorAll(".pair img")) {
  image.addEventListener("click", () => image.parentNode.classList.toggle("large"));
}
for (const head of document.querySelectorAll("table.sortable th")) {
  head.addEventListener("click", () => {
    const row = head.parentNode, body = head.closest("table").tBodies[0];
    const column = [...row.children].indexOf(head);
    const first = column === 0 ? "ascending" : "descending";
    const next = head.ariaSort === null ? first : head.ariaSort === "ascending" ? "descending" : "ascending";
    for (const other of row.children) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", next);
    const sign = next === "ascending" ? 1 : -1;
    const key = (tr) => tr.children[column].dataset.value ?? tr.children[column].textContent;
    const compare = (a, b) => (column === 0 ? key(a).localeCompare(key(b), undefined, { numeric: true }) : key(a) - key(b));
    body.replaceChildren(...[...body.rows].sort((a, b) => sign * compare(a, b)));
  });
}
