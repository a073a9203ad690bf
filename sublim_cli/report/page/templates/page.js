// Draws the figures of the report live, over the still ones the page came with.
// `vegaEmbed` is bundled in; a browser that runs no scripts, and paper, keep the still ones.

const NARROW = 600;  // pixels below which the panels of a figure stand below each other

function fitted(spec, room) {
  if (spec.concat) return { ...spec, columns: room < NARROW ? 1 : spec.columns };
  return { ...spec, width: "container" };
}

async function draw(figure) {
  const still = figure.querySelector(".still");
  const live = document.createElement("div");
  live.className = "live";
  still.before(live);
  const spec = JSON.parse(figure.querySelector("script").textContent);
  try {
    await vegaEmbed(live, fitted(spec, live.clientWidth), {
      ast: true,  // the page forbids code made from text
      renderer: "svg",
      actions: false,
      tooltip: { theme: "page" },
    });
    still.remove();
    figure.classList.add("drawn");
  } catch (error) {
    live.remove();
    throw error;
  }
}

for (const figure of document.querySelectorAll("figure.chart")) await draw(figure);
document.documentElement.dataset.drawn = "yes";
