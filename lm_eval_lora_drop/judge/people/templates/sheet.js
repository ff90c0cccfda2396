"use strict";
const form = document.getElementById("form");
const save = document.getElementById("save");
const columns = save.dataset.columns.split(",");
function table() {
  const lines = [["sheet", "pair", ...columns].join(",")];
  for (const article of form.querySelectorAll("article")) {
    const pair = article.dataset.pair;
    const values = columns.map((column) => {
      const chosen = article.querySelector(`input[name="${column}-${pair}"]:checked`);
      return chosen ? chosen.value : "";
    });
    lines.push([form.dataset.sheet, pair, ...values].join(","));
  }
  return lines.join("\n") + "\n";
}
function state() {
  const open = form.querySelectorAll("fieldset").length - form.querySelectorAll("input[type=radio]:checked").length;
  document.getElementById("state").textContent = open ? `${open} questions are open.` : "All questions are answered.";
}
form.addEventListener("change", state);
form.addEventListener("submit", (event) => event.preventDefault());
save.addEventListener("click", () => {
  const link = document.createElement("a");
  link.href = "data:text/csv;charset=utf-8," + encodeURIComponent(table());
  const rater = document.getElementById("rater").value.replace(/[^\p{L}\p{N}_-]+/gu, "_") || "anonymous";
  link.download = `sheet_${form.dataset.sheet}_${rater}.csv`;
  link.click();
});
state();
