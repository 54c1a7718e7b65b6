// Label maps -> pixels. A panel is one run on the stage: the picture, and above it the masks.

const WHITE = 0xffffffff; // pixels are written as one number, alpha first, then blue, green and red
const ERROR_NAMES = ["right", "wrong class", "right class, wrong track", "no truth"];
const ERROR_COLORS = ["", "#dd7800", "#0054a8", ""]; // apart in all kinds of colour vision
const DIM = pixel("#101216", 0.66);
const HOVERED = pixel("#ffe14d");

function pixel(color, alpha = 1) {
  const rgb = Number.parseInt(color.slice(1), 16);
  const a = Math.round(255 * alpha);
  return ((a << 24) | ((rgb & 255) << 16) | (rgb & 0xff00) | (rgb >> 16)) >>> 0;
}

function classColor(klass, colorblind) {
  if (klass === DATA.void) return "#000000";
  return DATA.classes[klass][colorblind ? "colorblind" : "color"];
}

class Panel {
  constructor(run) {
    this.run = run;
    this.element = document.createElement("figure");
    this.element.className = "panel";
    this.element.style.setProperty("--ratio", DATA.width / DATA.height);
    this.box = document.createElement("div");
    this.box.className = "box";
    this.picture = this.canvas("picture");
    this.mask = this.canvas("mask");
    this.mask.setAttribute("role", "img");
    this.caption = document.createElement("figcaption");
    this.caption.hidden = DATA.runs.length < 2;
    this.caption.textContent = DATA.runs[run].name;
    this.element.append(this.caption, this.box);
    this.pixels = this.mask.getContext("2d").createImageData(DATA.width, DATA.height);
    this.words = new Uint32Array(this.pixels.data.buffer);
  }

  canvas(name) {
    const canvas = document.createElement("canvas");
    canvas.className = name;
    canvas.width = DATA.width;
    canvas.height = DATA.height;
    this.box.append(canvas);
    return canvas;
  }

  // Which of SOURCES is drawn here.
  source(state) {
    return state.layers.truth ? TRUTH : this.run;
  }

  draw(frame, state) {
    const context = this.picture.getContext("2d");
    if (state.layers.picture) context.drawImage(frame.picture, 0, 0, DATA.width, DATA.height);
    else context.clearRect(0, 0, DATA.width, DATA.height);

    const source = this.source(state);
    const map = frame.maps[source];
    const chosen = state.selected && counterparts(state.selected, source);
    const fills = this.fills(map, source, state, chosen);
    for (let i = 0; i < map.index.length; i++) this.words[i] = fills[map.index[i]];
    if (state.layers.errors) this.drawErrors(frame, state);
    this.drawOutlines(map, this.lines(map, source, state, chosen));
    this.mask.getContext("2d").putImageData(this.pixels, 0, 0);
    this.mask.setAttribute("aria-label", this.description(map, source, frame.k));
  }

  // The colour of each segment of the frame. Where errors are shown, they alone have colours.
  fills(map, source, state, chosen) {
    return Uint32Array.from(map.segments, (number) => {
      const segment = segmentOf(source, number);
      const seen = segment.klass !== DATA.void && !state.hidden.has(segment.klass);
      let alpha = state.opacity;
      if (chosen && !chosen.has(number)) return DIM;
      if (chosen) alpha = Math.max(alpha, 0.6);
      if (!seen || state.layers.errors) return 0;
      if (state.layers.instances && segment.track) {
        return pixel(state.colorblind ? segment.colorblind : segment.color, alpha);
      }
      return state.layers.classes ? pixel(classColor(segment.klass, state.colorblind), alpha) : 0;
    });
  }

  // The colour of each segment's outline, 0 for none: white around tracks, yellow around what the pointer is on.
  lines(map, source, state, chosen) {
    const hovered = state.hovered && counterparts(state.hovered, source);
    return Uint32Array.from(map.segments, (number) => {
      const segment = segmentOf(source, number);
      if (segment.klass === DATA.void) return 0;
      if (hovered?.has(number)) return HOVERED;
      if (chosen) return chosen.has(number) ? WHITE : 0;
      return state.layers.outlines && segment.track && !state.hidden.has(segment.klass) ? WHITE : 0;
    });
  }

  // Pixels inside a segment at its border; as `outlines` in render.py has them.
  drawOutlines({ index }, lines) {
    if (!lines.some((line) => line)) return;
    const { words } = this;
    const { width, height } = DATA;
    for (let y = 0, i = 0; y < height; y++) {
      for (let x = 0; x < width; x++, i++) {
        const here = index[i];
        if (x + 1 < width && index[i + 1] !== here) {
          if (lines[here]) words[i] = lines[here];
          if (lines[index[i + 1]]) words[i + 1] = lines[index[i + 1]];
        }
        if (y + 1 < height && index[i + width] !== here) {
          if (lines[here]) words[i] = lines[here];
          if (lines[index[i + width]]) words[i + width] = lines[index[i + width]];
        }
      }
    }
  }

  drawErrors(frame, state) {
    const kinds = errorKinds(frame, this.run);
    const colors = ERROR_COLORS.map((color) => (color ? pixel(color, Math.max(state.opacity, 0.8)) : 0));
    const across = frame.maps[this.run].segments.length;
    const truth = frame.maps[TRUTH].index;
    const run = frame.maps[this.run].index;
    for (let i = 0; i < run.length; i++) {
      const kind = kinds[truth[i] * across + run[i]];
      if (colors[kind]) this.words[i] = colors[kind];
    }
  }

  // The segments of a frame at a pixel: of this run, and of the truth where it is known.
  at(frame, x, y, state) {
    const i = y * DATA.width + x;
    const sources = [this.source(state), ...(DATA.truth && !state.layers.truth ? [TRUTH] : [])];
    return sources.map((source) => {
      const map = frame.maps[source];
      const local = map.index[i];
      return { ...segmentOf(source, map.segments[local]), area: map.areas[local] };
    });
  }

  description(map, source, k) {
    const tracks = Array.from(map.segments, (number) => segmentOf(source, number)).filter((s) => s.track);
    const names = tracks.slice(0, 12).map(nameOf).join(", ");
    const what = tracks.length ? `${tracks.length} tracks: ${names}${tracks.length > 12 ? ", …" : ""}` : "no tracks";
    return `Frame ${DATA.numbers[k]}, ${what}`;
  }
}

// What is wrong where a true segment meets a predicted one: for each such pair a position in ERROR_NAMES.
function errorKinds(frame, run) {
  const [truth, predicted] = [frame.maps[TRUTH].segments, frame.maps[run].segments];
  const kinds = new Uint8Array(truth.length * predicted.length);
  truth.forEach((a, row) => {
    const real = segmentOf(TRUTH, a);
    const partners = real.track ? counterparts(real, run) : null;
    predicted.forEach((b, column) => {
      let kind = 0;
      if (real.klass === DATA.void) kind = 3;
      else if (real.klass !== SOURCES[run].segments[b][0]) kind = 1;
      else if (partners && !partners.has(b)) kind = 2;
      kinds[row * predicted.length + column] = kind;
    });
  });
  return kinds;
}
