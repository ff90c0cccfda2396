const shownIn = (section, fits) => {
  const documents = section.querySelectorAll("article");
  const words = section.querySelector("input[type=search]").value.toLowerCase();
  let shown = 0;
  documents.forEach((one) => {
    const kept = fits(one) && (!words || one.textContent.toLowerCase().includes(words));
    one.hidden = !kept;
    shown += kept;
  });
  return shown + " of " + documents.length + " shown";
};

const listen = (section, update) => {
  const form = section.querySelector("form");
  form.hidden = false;
  form.addEventListener("input", update);
  form.addEventListener("submit", (event) => event.preventDefault());
  update();
};

document.querySelectorAll("section.pair").forEach((section) => listen(section, () => {
  const kind = section.querySelector("input[type=radio]:checked").value;
  section.querySelector("output").textContent = shownIn(section, (one) => kind === "all" || one.dataset.kind === kind);
}));

document.querySelectorAll("section.over-k").forEach((section) => {
  const slider = section.querySelector("input[type=range]");
  listen(section, () => {
    const step = slider.value;
    const kind = section.querySelector("input[type=radio]:checked").value;
    section.querySelectorAll("[data-step]").forEach((one) => {
      const now = one.dataset.step === step;
      if (one.classList.contains("said")) one.hidden = !now;
      else one.classList.toggle("now", now);
    });
    const cells = [...section.querySelector("tr.now").children].map((cell) => cell.textContent);
    const said = "K = " + cells[0] + ": " + cells[1] + ", " + cells[2] + " gained, " + cells[3] + " lost";
    slider.setAttribute("aria-valuetext", said);
    section.querySelector(".at").textContent = said;
    section.querySelector(".count").textContent = shownIn(section, (one) =>
      kind === "all" || one.querySelector(".said:not([hidden])").dataset.change === kind);
  });
});

const state = document.body.dataset.state;
if (state) {
  const ask = async () => {
    try {
      const answer = await fetch("state", { cache: "no-store" });
      if (answer.ok && (await answer.text()) !== state) location.reload();
    } catch (error) {
      // The server has ended: what is shown stays.
    }
    setTimeout(ask, 2000);
  };
  setTimeout(ask, 2000);
}
