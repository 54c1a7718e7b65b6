// The right part: what is selected, the layers, the classes with their shares, the figures, the search; and the tip
// that follows the pointer.

const LAYERS = [
  ["picture", "Picture", "1"],
  ["classes", "Classes", "2"],
  ["instances", "Instances", "3"],
  ["outlines", "Outlines", "4"],
  ["errors", "Errors", "5"],
  ["truth", "Truth, not prediction", "6"],
];
const COUNT = new Intl.NumberFormat("en");

function sourceName(source) {
  if (source === TRUTH) return "truth";
  return DATA.runs.length > 1 ? DATA.runs[source].name : "";
}

function areaOf(frame, source, number) {
  const map = frame.maps[source];
  const local = map.segments.indexOf(number);
  return local < 0 ? 0 : map.areas[local];
}

function wholeArea(frame) {
  return frame.maps[0].areas.reduce((sum, area) => sum + area, 0);
}

class Side {
  // change(): called after `state` was changed here.
  constructor(state, change) {
    this.state = state;
    this.change = change;
    this.addLayers();
    this.addClasses();
    this.addQuality();
  }

  checkbox(text, checked, changed) {
    const label = make("label", "check");
    const box = make("input");
    box.type = "checkbox";
    box.checked = checked;
    box.addEventListener("change", () => changed(box.checked));
    label.append(box, text);
    return { label, box };
  }

  // ---------------------------------------------------------------------------------------------------------------

  addLayers() {
    const parent = document.getElementById("layers");
    this.layers = {};
    for (const [name, title, key] of LAYERS) {
      if ((name === "errors" || name === "truth") && !DATA.truth) continue;
      const { label, box } = this.checkbox(make("span", "grow", title), this.state.layers[name], (on) => {
        this.state.layers[name] = on;
        this.change();
      });
      label.append(make("kbd", "", key));
      this.layers[name] = box;
      parent.append(label);
    }
    const { label, box } = this.checkbox(make("span", "grow", "Colour-blind palette"), this.state.colorblind, (on) => {
      this.state.colorblind = on;
      this.change();
    });
    label.append(make("kbd", "", "c"));
    this.colorblind = box;
    parent.append(label);
  }

  addClasses() {
    const parent = document.getElementById("classes");
    const used = new Set(SOURCES.flatMap(({ segments }) => segments.filter((s) => s[4].length).map((s) => s[0])));
    this.classes = [];
    DATA.classes.forEach((klass, number) => {
      if (!used.has(number)) return;
      const swatch = make("i", "swatch");
      const { label, box } = this.checkbox(swatch, true, (on) => {
        this.state.hidden[on ? "delete" : "add"](number);
        this.change();
      });
      label.append(make("span", "grow", klass.name));
      const shares = DATA.runs.map((run) => {
        const share = make("span", "share");
        share.title = DATA.runs.length > 1 ? run.name : "";
        label.append(share);
        return share;
      });
      this.classes.push({ number, box, swatch, shares, label });
      parent.append(label);
    });
    document.getElementById("all").addEventListener("click", () => {
      const { hidden } = this.state;
      if (hidden.size) hidden.clear();
      else for (const { number } of this.classes) hidden.add(number);
      this.change();
    });
  }

  addQuality() {
    if (!DATA.truth) return;
    const section = document.getElementById("quality");
    section.hidden = false;
    const table = section.querySelector("table");
    const head = table.createTHead().insertRow();
    const several = DATA.runs.length > 1;
    for (const text of [...(several ? [""] : []), "STQ", "AQ", "SQ", "wrong now"]) {
      const cell = make("th", "", text);
      cell.scope = "col";
      head.append(cell);
    }
    const body = table.createTBody();
    this.wrong = DATA.runs.map((run) => {
      const row = body.insertRow();
      if (several) {
        const name = make("th", "", run.name);
        name.scope = "row";
        row.append(name);
      }
      for (const figure of ["STQ", "AQ", "SQ"]) row.insertCell().textContent = percent(run.quality[figure], 1, "");
      return row.insertCell();
    });
  }

  // ---------------------------------------------------------------------------------------------------------------

  update(frame) {
    const { state } = this;
    for (const [name, box] of Object.entries(this.layers)) box.checked = state.layers[name];
    this.colorblind.checked = state.colorblind;
    document.getElementById("all").textContent = state.hidden.size ? "show all" : "hide all";
    const whole = wholeArea(frame);
    const shares = DATA.runs.map((_, source) => {
      const areas = new Map();
      const map = frame.maps[source];
      map.segments.forEach((number, i) => {
        const [klass] = SOURCES[source].segments[number];
        areas.set(klass, (areas.get(klass) ?? 0) + map.areas[i]);
      });
      return areas;
    });
    for (const { number, box, swatch, shares: cells, label } of this.classes) {
      box.checked = !state.hidden.has(number);
      swatch.style.background = classColor(number, state.colorblind);
      cells.forEach((cell, source) => {
        const area = shares[source].get(number) ?? 0;
        cell.textContent = area ? percent(area / whole) : "–";
      });
      label.classList.toggle("absent", !shares.some((areas) => areas.get(number)));
    }
    this.wrong?.forEach((cell, run) => {
      const errors = DATA.runs[run].errors[frame.k];
      cell.textContent = errors ? percent(errors[0] + errors[1], 1, "") : "–";
    });
    this.showSelected(frame);
  }

  showSelected(frame) {
    const parent = document.getElementById("selected");
    const { selected, colorblind } = this.state;
    parent.replaceChildren();
    document.getElementById("clear").hidden = !selected;
    if (!selected) {
      parent.append(make("p", "note", "Click a segment, or a track below. Esc clears."));
      return;
    }
    const whole = wholeArea(frame);
    SOURCES.forEach((_, source) => {
      for (const number of counterparts(selected, source)) {
        const segment = segmentOf(source, number);
        if (!segment.seen.length) continue;
        const line = make("div", "entry");
        const swatch = make("i", "swatch");
        const own = segment.track ? (colorblind ? segment.colorblind : segment.color) : null;
        swatch.style.background = own ?? classColor(segment.klass, colorblind);
        const area = areaOf(frame, source, number);
        const text = make("div", "grow");
        const head = make("div", "entry-head", nameOf(segment));
        if (sourceName(source)) head.append(make("span", "dim", ` ${sourceName(source)}`));
        const now = area ? `${COUNT.format(area)} px, ${percent(area / whole)}` : "not in this frame";
        text.append(head, make("div", "dim", now), make("div", "dim", seenText(segment)));
        line.append(swatch, text);
        parent.append(line);
      }
    });
  }
}

// ---------------------------------------------------------------------------------------------------------------------

// Segments whose id begins with the number that is looked for, the same id first; or whose class has the word in it.
function search(text) {
  const wanted = text.trim().toLowerCase();
  if (!wanted) return [];
  const all = SOURCES.flatMap(({ segments }, source) => segments.map((_, number) => segmentOf(source, number)));
  const seen = all.filter((s) => s.seen.length && s.klass !== DATA.void);
  const named = seen.filter((s) => nameOf(s).toLowerCase() === wanted);
  const ids = seen.filter((s) => s.track && String(s.track).startsWith(wanted));
  ids.sort((a, b) => a.source - b.source || String(a.track).length - String(b.track).length || a.track - b.track);
  const words = seen.filter((s) => nameOf(s).toLowerCase().includes(wanted) && !ids.includes(s));
  return [...new Set([...named, ...ids, ...words])];
}

class Tip {
  constructor() {
    this.element = document.getElementById("tip");
  }

  // rows: [name of the source, segment]
  show(rows, whole, x, y) {
    this.element.replaceChildren();
    for (const [of, segment] of rows) {
      const line = make("div", "line");
      line.append(make("b", "", nameOf(segment)));
      if (of) line.append(make("span", "dim", ` ${of}`));
      const size = `${COUNT.format(segment.area)} px, ${percent(segment.area / whole)}`;
      line.append(make("div", "dim", segment.klass === DATA.void ? size : `${size} · ${seenText(segment)}`));
      this.element.append(line);
    }
    this.element.hidden = false;
    const box = this.element.getBoundingClientRect();
    this.element.style.left = `${Math.max(4, Math.min(x + 14, innerWidth - box.width - 6))}px`;
    this.element.style.top = `${y + 18 + box.height > innerHeight ? Math.max(4, y - box.height - 10) : y + 18}px`;
  }

  hide() {
    this.element.hidden = true;
  }
}
