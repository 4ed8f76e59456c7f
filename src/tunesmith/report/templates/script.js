"use strict";
(() => {
  const root = document.documentElement;
  const button = document.getElementById("theme");
  const dark = () => root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  const name = () => { button.textContent = dark() ? "Light" : "Dark"; };
  // Storage is refused for some file:// pages: the choice then lasts as long as the page.
  try { const kept = localStorage.getItem("tunesmith-theme"); if (kept === "dark" || kept === "light") root.dataset.theme = kept; } catch (error) { /* see above */ }
  button.hidden = false;
  name();
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", name);
  button.addEventListener("click", () => {
    root.dataset.theme = dark() ? "light" : "dark";
    try { localStorage.setItem("tunesmith-theme", root.dataset.theme); } catch (error) { /* see above */ }
    name();
  });

  // What is folded away on a screen belongs on paper.
  addEventListener("beforeprint", () => { for (const fold of document.querySelectorAll("details")) fold.open = true; });

  const tip = document.createElement("div");
  tip.className = "tip";
  tip.hidden = true;
  document.body.append(tip);
  const nearest = (points, step) => {
    let low = 0, high = points.length - 1;
    while (high - low > 1) { const middle = (low + high) >> 1; if (points[middle][0] < step) low = middle; else high = middle; }
    return Math.abs(points[low][0] - step) <= Math.abs(points[high][0] - step) ? points[low] : points[high];
  };
  for (const svg of document.querySelectorAll("svg[data-curves]")) {
    const curves = JSON.parse(svg.dataset.curves).filter((curve) => curve.points.length);
    const [stepLow, stepHigh, left, right, , , bottom, top] = JSON.parse(svg.dataset.frame);
    const line = document.createElementNS("http://www.w3.org/2000/svg", "line");
    line.setAttribute("class", "crosshair");
    line.setAttribute("y1", top);
    line.setAttribute("y2", bottom);
    const hide = () => { tip.hidden = true; line.remove(); };
    svg.addEventListener("pointerleave", hide);
    svg.addEventListener("pointermove", (event) => {
      const box = svg.getBoundingClientRect();
      const x = (event.clientX - box.left) * svg.viewBox.baseVal.width / box.width;
      if (x < left - 8 || x > right + 8 || !curves.length) { hide(); return; }
      const wanted = stepLow + (Math.min(right, Math.max(left, x)) - left) / (right - left) * (stepHigh - stepLow);
      const step = nearest(curves[0].points, wanted)[0];
      const place = left + (step - stepLow) / (stepHigh - stepLow) * (right - left);
      line.setAttribute("x1", place);
      line.setAttribute("x2", place);
      svg.append(line);
      tip.replaceChildren();
      const head = document.createElement("b");
      head.textContent = `step ${step.toLocaleString("en")}`;
      tip.append(head);
      for (const curve of curves) {
        const [at, value] = nearest(curve.points, step);
        const row = document.createElement("div");
        row.textContent = `${curve.name} ${value}${at === step ? "" : ` (step ${at.toLocaleString("en")})`}`;
        tip.append(row);
      }
      tip.hidden = false;
      const room = root.clientWidth - tip.offsetWidth - 8;
      tip.style.left = `${Math.max(8, Math.min(event.clientX + 14, room)) + scrollX}px`;
      tip.style.top = `${event.clientY + scrollY - tip.offsetHeight - 12}px`;
    });
  }
})();
