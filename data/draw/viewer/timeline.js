// The lower part: the slider, the strips of errors, and a row for each track. All share one axis, frames from left to
// right. A click or a drag anywhere on it goes to that frame.

const SVG = "http://www.w3.org/2000/svg";

function make(tag, className = "", text = "") {
  const element = document.createElement(tag);
  if (className) element.className = className;
  if (text) element.textContent = text;
  return element;
}

function percent(share, digits = 1, unit = " %") {
  return share === null ? "–" : (100 * share).toFixed(digits) + unit;
}

class Timeline {
  // go(frame), select(segment): what a click does.
  constructor(go, select) {
    this.root = document.getElementById("time");
    this.slider = document.getElementById("scrub");
    this.go = go;
    this.select = select;
    this.rows = [];
    this.slider.setAttribute("aria-valuemin", 1);
    this.slider.setAttribute("aria-valuemax", FRAMES);
    this.draggable(this.slider);
    this.addStrips(document.getElementById("strips"));
    for (const source of SOURCES.keys()) this.addTracks(document.getElementById("tracks"), source);
  }

  draggable(axis, picked = () => {}) {
    const frame = (event) => {
      const box = axis.getBoundingClientRect();
      return Math.min(FRAMES - 1, Math.max(0, Math.floor(((event.clientX - box.left) / box.width) * FRAMES)));
    };
    axis.addEventListener("pointerdown", (event) => {
      if (event.button) return;
      axis.setPointerCapture(event.pointerId);
      picked();
      this.go(frame(event));
    });
    axis.addEventListener("pointermove", (event) => axis.hasPointerCapture(event.pointerId) && this.go(frame(event)));
  }

  // ---------------------------------------------------------------------------------------------------------------

  // One strip a run: of each frame a column, as high as its share of wrong pixels.
  addStrips(parent) {
    if (!DATA.truth) return;
    const highest = Math.max(0.01, ...DATA.runs.flatMap((run) => run.errors.map((e) => (e ? e[0] + e[1] : 0))));
    DATA.runs.forEach((run, r) => {
      const row = make("div", "row strip");
      const name = make("span", "name", DATA.runs.length > 1 ? `Errors, ${run.name}` : "Errors");
      name.title = `The full height is ${percent(highest)} of the pixels`;
      const axis = make("div", "axis");
      axis.dataset.run = r;
      axis.append(this.bars(run.errors, highest));
      this.draggable(axis);
      row.append(name, axis);
      parent.append(row);
    });
    const legend = make("p", "legend");
    for (const kind of [1, 2]) {
      const swatch = make("i", "swatch");
      swatch.style.background = ERROR_COLORS[kind];
      const entry = make("span");
      entry.append(swatch, ERROR_NAMES[kind]);
      legend.append(entry);
    }
    legend.append(make("span", "dim", `full height ${percent(highest)} of the pixels`));
    parent.append(legend);
  }

  bars(errors, highest) {
    const svg = document.createElementNS(SVG, "svg");
    svg.setAttribute("viewBox", `0 0 ${FRAMES} 1`);
    svg.setAttribute("preserveAspectRatio", "none");
    svg.setAttribute("aria-hidden", "true");
    for (const kind of [1, 2]) {
      let shape = "";
      errors.forEach((shares, k) => {
        if (!shares) return;
        const below = kind === 2 ? shares[0] / highest : 0;
        const height = shares[kind - 1] / highest;
        if (height) shape += `M${k} ${1 - below - height}h1v${height}h-1z`;
      });
      svg.append(this.path(shape, ERROR_COLORS[kind]));
    }
    return svg;
  }

  path(shape, color) {
    const path = document.createElementNS(SVG, "path");
    path.setAttribute("d", shape);
    path.style.fill = color;
    return path;
  }

  // ---------------------------------------------------------------------------------------------------------------

  addTracks(parent, source) {
    const segments = SOURCES[source].segments.map((_, number) => segmentOf(source, number));
    const tracks = segments.filter((s) => s.track && s.seen.length && s.klass !== DATA.void);
    tracks.sort((a, b) => a.seen[0] - b.seen[0] || a.klass - b.klass || a.track - b.track);
    const group = make("details", "tracks");
    group.open = source !== TRUTH;
    const of = source === TRUTH ? "truth" : DATA.runs.length > 1 ? DATA.runs[source].name : "";
    group.append(make("summary", "", `${tracks.length} track${tracks.length === 1 ? "" : "s"}${of ? `, ${of}` : ""}`));
    for (const segment of tracks) {
      const row = make("div", "row track");
      const name = make("button", "name", nameOf(segment));
      name.type = "button";
      name.title = `${nameOf(segment)}, ${seenText(segment)}`;
      name.setAttribute("aria-label", `${name.title}: select`);
      name.addEventListener("click", () => this.select(segment));
      const axis = make("div", "axis");
      const svg = document.createElementNS(SVG, "svg");
      svg.setAttribute("viewBox", `0 0 ${FRAMES} 1`);
      svg.setAttribute("preserveAspectRatio", "none");
      svg.setAttribute("aria-hidden", "true");
      let shape = "";
      for (let i = 0; i < segment.seen.length; i += 2) {
        const length = segment.seen[i + 1] - segment.seen[i] + 1;
        shape += `M${segment.seen[i]} 0h${length}v1h${-length}z`;
      }
      const path = this.path(shape, segment.color);
      svg.append(path);
      axis.append(svg);
      this.draggable(axis, () => this.select(segment, false));
      row.append(name, axis);
      group.append(row);
      this.rows.push({ segment, row, name, path });
    }
    parent.append(group);
  }

  color(colorblind) {
    for (const { segment, path } of this.rows) path.style.fill = colorblind ? segment.colorblind : segment.color;
  }

  // Only the rows of these segments; null for all.
  filter(segments) {
    const wanted = segments && new Set(segments.map(({ source, number }) => `${source} ${number}`));
    for (const { segment, row } of this.rows) {
      row.hidden = Boolean(wanted) && !wanted.has(`${segment.source} ${segment.number}`);
    }
  }

  // Bring a segment's row into sight, where the rows scroll by themselves.
  reveal(segment) {
    const row = this.rows.find(({ segment: s }) => s.source === segment.source && s.number === segment.number)?.row;
    if (!row || this.root.scrollHeight <= this.root.clientHeight) return;
    row.parentElement.open = true;
    const [box, view] = [row.getBoundingClientRect(), this.root.getBoundingClientRect()];
    const head = this.slider.parentElement.offsetHeight;
    if (box.top < view.top + head) this.root.scrollTop += box.top - view.top - head;
    else if (box.bottom > view.bottom) this.root.scrollTop += box.bottom - view.bottom + 8;
  }

  update(k, selected) {
    this.root.style.setProperty("--at", (k + 0.5) / FRAMES);
    this.slider.setAttribute("aria-valuenow", k + 1);
    this.slider.setAttribute("aria-valuetext", `frame ${DATA.numbers[k]}, ${k + 1} of ${FRAMES}`);
    const chosen = SOURCES.map((_, source) => (selected ? counterparts(selected, source) : NOTHING));
    for (const { segment, row, name } of this.rows) {
      const on = chosen[segment.source].has(segment.number);
      row.classList.toggle("chosen", on);
      row.classList.toggle("now", isSeen(segment, k));
      name.setAttribute("aria-pressed", on);
    }
  }
}
