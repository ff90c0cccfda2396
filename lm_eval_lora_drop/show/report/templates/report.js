document.querySelectorAll("section.pair").forEach((section) => {
  const form = section.querySelector("form");
  const documents = section.querySelectorAll("article");
  const update = () => {
    const kind = form.querySelector("input[type=radio]:checked").value;
    const words = form.querySelector("input[type=search]").value.toLowerCase();
    let shown = 0;
    documents.forEach((one) => {
      const kept = (kind === "all" || one.dataset.kind === kind)
        && (!words || one.textContent.toLowerCase().includes(words));
      one.hidden = !kept;
      shown += kept;
    });
    form.querySelector("output").textContent = shown + " of " + documents.length + " shown";
  };
  form.hidden = false;
  form.addEventListener("input", update);
  form.addEventListener("submit", (event) => event.preventDefault());
  update();
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
