document.querySelectorAll("section.pair").forEach((section) => {
  const documents = section.querySelectorAll("article");
  const count = section.querySelector("output");
  const update = () => {
    const kind = section.querySelector("input[type=radio]:checked").value;
    const words = section.querySelector("input[type=search]").value.toLowerCase();
    let shown = 0;
    documents.forEach((one) => {
      const fits = (kind === "all" || one.dataset.kind === kind) &&
        (!words || one.textContent.toLowerCase().includes(words));
      one.hidden = !fits;
      shown += fits;
    });
    count.textContent = shown + " of " + documents.length + " shown";
  };
  section.querySelector("form").hidden = false;
  section.querySelector("form").addEventListener("input", update);
  section.querySelector("form").addEventListener("submit", (event) => event.preventDefault());
  update();
});
