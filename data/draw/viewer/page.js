// The page itself: its state, which frame is shown, playback, the pointer and the keys.

const state = {
  frame: -1, // that is shown
  wanted: 0,
  playing: false,
  speed: 1,
  opacity: 0.5,
  layers: { picture: true, classes: true, instances: true, outlines: true, errors: false, truth: false },
  hidden: new Set(), // classes that are switched off
  colorblind: false,
  selected: null,
  hovered: null,
};
const STEP = 10; // frames of a large step
const byId = (id) => document.getElementById(id);
const store = new FrameStore();
const panels = DATA.runs.map((_, run) => new Panel(run));
const timeline = new Timeline(go, select);
const side = new Side(state, change);
const tip = new Tip();
let shown = null; // the frame on the stage
let stale = true; // something else than the frame's number has changed
let busy = false;
let done = null;

// ---------------------------------------------------------------------------------------------------------------------
// Frames
// ---------------------------------------------------------------------------------------------------------------------

// Ask for a frame. Whoever asks while one is being read gets the newest wish; picture and masks change together.
function show(k) {
  state.wanted = Math.min(FRAMES - 1, Math.max(0, k));
  if (!busy) {
    busy = true;
    done = catchUp();
  }
  return done;
}

async function catchUp() {
  try {
    while (state.frame !== state.wanted || stale) {
      const k = state.wanted;
      const frame = await store.get(k);
      stale = false;
      shown = frame;
      state.frame = k;
      draw();
      if (state.playing) for (let ahead = 1; ahead <= 4 && k + ahead < FRAMES; ahead++) store.get(k + ahead);
    }
  } catch (error) {
    pause();
    trouble(error.message);
    throw error;
  } finally {
    busy = false;
  }
}

function draw() {
  byId("stage").classList.toggle("errors", state.layers.errors);
  for (const panel of panels) panel.draw(shown, state);
  timeline.update(state.frame, state.selected);
  side.update(shown);
  const number = DATA.numbers[state.frame];
  byId("where").textContent = `frame ${number}`;
  byId("count").textContent = `${state.frame + 1} / ${FRAMES}`;
  performance.mark("drawn");
}

function change() {
  stale = true;
  timeline.color(state.colorblind);
  show(state.wanted);
}

function go(k) {
  pause();
  return show(k);
}

// ---------------------------------------------------------------------------------------------------------------------
// Playback
// ---------------------------------------------------------------------------------------------------------------------

let from = { frame: 0, time: 0 };

function play() {
  if (state.playing) return;
  state.playing = true;
  if (state.wanted === FRAMES - 1) show(0);
  from = { frame: state.wanted, time: performance.now() };
  playButton();
  requestAnimationFrame(tick);
}

function pause() {
  state.playing = false;
  playButton();
}

function tick() {
  if (!state.playing) return;
  const passed = ((performance.now() - from.time) / 1000) * DATA.fps * state.speed;
  const k = from.frame + Math.floor(passed);
  if (k !== state.wanted) show(k);
  if (k >= FRAMES - 1) pause();
  else requestAnimationFrame(tick);
}

function setSpeed(speed) {
  state.speed = speed;
  from = { frame: state.wanted, time: performance.now() };
  byId("speed").value = String(speed);
}

function playButton() {
  byId("play").classList.toggle("on", state.playing);
  byId("play").setAttribute("aria-label", state.playing ? "Pause" : "Play");
}

// ---------------------------------------------------------------------------------------------------------------------
// Selection and the pointer
// ---------------------------------------------------------------------------------------------------------------------

// jump: go to where the segment is first seen, if it is not seen now.
function select(segment, jump = true) {
  state.selected = segment;
  stale = true;
  if (segment) timeline.reveal(segment);
  say(segment ? `${nameOf(segment)} selected, ${seenText(segment)}` : "Nothing selected");
  if (segment && jump && !isSeen(segment, state.wanted)) return go(segment.seen[0]);
  return show(state.wanted);
}

function same(a, b) {
  return a && b ? a.source === b.source && a.number === b.number : a === b;
}

// The next segment with a track of this frame, or the one before: selection without a pointer.
function cycle(by) {
  const source = panels[0].source(state);
  const all = Array.from(shown.maps[source].segments, (number) => segmentOf(source, number));
  const tracks = all.filter((s) => s.track && s.klass !== DATA.void);
  if (!tracks.length) return;
  const at = tracks.findIndex((s) => same(s, state.selected));
  select(tracks[at < 0 ? (by > 0 ? 0 : tracks.length - 1) : (at + by + tracks.length) % tracks.length]);
}

function place(panel, event) {
  const box = panel.mask.getBoundingClientRect();
  const x = Math.floor(((event.clientX - box.left) / box.width) * DATA.width);
  const y = Math.floor(((event.clientY - box.top) / box.height) * DATA.height);
  return [Math.min(DATA.width - 1, Math.max(0, x)), Math.min(DATA.height - 1, Math.max(0, y))];
}

function hover(segment) {
  if (same(segment, state.hovered)) return;
  state.hovered = segment;
  if (shown) for (const panel of panels) panel.draw(shown, state);
}

for (const panel of panels) {
  byId("stage").append(panel.element);
  panel.mask.addEventListener("pointermove", (event) => {
    if (!shown || event.pointerType === "touch") return;
    const [x, y] = place(panel, event);
    const here = panel.at(shown, x, y, state);
    hover(here[0].klass === DATA.void ? null : here[0]);
    const others = panels.filter((p) => p !== panel && !state.layers.truth).map((p) => p.at(shown, x, y, state)[0]);
    const rows = [here[0], ...others, ...here.slice(1)].map((segment) => [sourceName(segment.source), segment]);
    tip.show(rows, wholeArea(shown), event.clientX, event.clientY);
  });
  panel.mask.addEventListener("pointerleave", () => {
    hover(null);
    tip.hide();
  });
  panel.mask.addEventListener("click", (event) => {
    if (!shown) return;
    const [here] = panel.at(shown, ...place(panel, event), state);
    select(here.klass === DATA.void || same(here, state.selected) ? null : here, false);
  });
}

// ---------------------------------------------------------------------------------------------------------------------
// Controls and keys
// ---------------------------------------------------------------------------------------------------------------------

function say(text) {
  byId("status").textContent = text;
}

function trouble(text) {
  byId("trouble").textContent = text;
  byId("trouble").hidden = false;
}

function setOpacity(percentage) {
  state.opacity = Math.min(100, Math.max(0, percentage)) / 100;
  byId("opacity").value = Math.round(100 * state.opacity);
  change();
}

function toggle(layer) {
  if ((layer === "errors" || layer === "truth") && !DATA.truth) return;
  state.layers[layer] = !state.layers[layer];
  change();
}

function togglePalette() {
  state.colorblind = !state.colorblind;
  change();
}

function setTheme(theme) {
  document.documentElement.dataset.theme = theme;
  try {
    localStorage.setItem("viewer-theme", theme);
  } catch {
    // a page inside a notebook may have no storage
  }
}

function theme() {
  const now = document.documentElement.dataset.theme;
  const dark = now ? now === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  setTheme(dark ? "light" : "dark");
}

// The frame with most wrong pixels.
function worst() {
  if (!DATA.truth) return;
  const wrong = (k) => Math.max(...DATA.runs.map(({ errors }) => (errors[k] ? errors[k][0] + errors[k][1] : -1)));
  go(DATA.numbers.map((_, k) => k).reduce((best, k) => (wrong(k) > wrong(best) ? k : best), 0));
}

function faster(by) {
  const speeds = Array.from(byId("speed").options, (option) => Number(option.value));
  setSpeed(speeds[Math.min(speeds.length - 1, Math.max(0, speeds.indexOf(state.speed) + by))]);
}

// Filter the tracks by what stands in the search; with `next`, select the next that is found.
function find(next) {
  const text = byId("search").value.trim();
  const found = search(text);
  timeline.filter(text ? found : null);
  byId("found").textContent = text ? `${found.length || "none"} found` : "";
  const at = found.findIndex((segment) => same(segment, state.selected));
  if (next && found.length) select(found[(at + 1) % found.length]);
}

const KEYS = [
  [["Space", "k"], "play, pause", () => (state.playing ? pause() : play())],
  [["ArrowRight"], "one frame on", () => go(state.wanted + 1)],
  [["ArrowLeft"], "one frame back", () => go(state.wanted - 1)],
  [["Shift+ArrowRight"], `${STEP} frames on`, () => go(state.wanted + STEP)],
  [["Shift+ArrowLeft"], `${STEP} frames back`, () => go(state.wanted - STEP)],
  [["Home"], "first frame", () => go(0)],
  [["End"], "last frame", () => go(FRAMES - 1)],
  [[">", "."], "faster", () => faster(1)],
  [["<", ","], "slower", () => faster(-1)],
  [["+", "="], "masks more opaque", () => setOpacity(100 * state.opacity + 10)],
  [["-"], "masks less opaque", () => setOpacity(100 * state.opacity - 10)],
  ...LAYERS.map(([layer, title, key]) => [[key], `layer: ${title.toLowerCase()}`, () => toggle(layer), layer]),
  [["c"], "colour-blind palette", togglePalette],
  [["n"], "select the next track", () => cycle(1)],
  [["p"], "select the track before", () => cycle(-1)],
  [["w"], "frame with most errors", worst, "errors"],
  [["/"], "find an id or a class", () => byId("search").focus()],
  [["Escape"], "clear the selection", () => select(null)],
  [["d"], "light or dark", theme],
  [["?"], "these keys", () => byId("keys").showModal()],
].filter(([, , , layer]) => DATA.truth || (layer !== "errors" && layer !== "truth"));
const SIGNS = { ArrowRight: "→", ArrowLeft: "←", Escape: "Esc" };
const ACTIONS = new Map(KEYS.flatMap(([keys, , action]) => keys.map((key) => [key, action])));

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || byId("keys").open) return;
  const { target } = event;
  let key = event.key === " " ? "Space" : event.key;
  if (event.shiftKey && key.startsWith("Arrow")) key = `Shift+${key}`;
  if (target === byId("search")) {
    if (key === "Escape") target.blur();
    return;
  }
  if (target.matches("select, input[type=range]") && /Arrow|Home|End/.test(key)) return; // their own keys
  if (target.matches("button, summary, input[type=checkbox]") && key === "Space") return;
  const action = ACTIONS.get(key);
  if (!action) return;
  event.preventDefault();
  action();
});

for (const [keys, text] of KEYS) {
  const entry = make("div");
  const term = make("dt");
  for (const key of keys)
    term.append(
      make(
        "kbd",
        "",
        key.replace(/\w+$/, (word) => SIGNS[word] ?? word),
      ),
    );
  entry.append(term, make("dd", "", text));
  document.querySelector("#keys dl").append(entry);
}

const CLICKS = {
  first: () => go(0),
  back: () => go(state.wanted - 1),
  play: () => (state.playing ? pause() : play()),
  forward: () => go(state.wanted + 1),
  last: () => go(FRAMES - 1),
  clear: () => select(null),
  theme,
  help: () => byId("keys").showModal(),
};
for (const [id, action] of Object.entries(CLICKS)) byId(id).addEventListener("click", action);
byId("speed").addEventListener("change", (event) => setSpeed(Number(event.target.value)));
byId("opacity").addEventListener("input", (event) => setOpacity(Number(event.target.value)));
byId("search").addEventListener("input", () => find(false));
byId("search").addEventListener("keydown", (event) => event.key === "Enter" && find(true));

// ---------------------------------------------------------------------------------------------------------------------

try {
  const theme = localStorage.getItem("viewer-theme");
  if (theme) document.documentElement.dataset.theme = theme;
} catch {
  // no storage, no memory
}
byId("title").textContent = DATA.title;
byId("subtitle").textContent = `${FRAMES} frames, ${DATA.width} × ${DATA.height}`;
byId("stage").classList.toggle("two", panels.length > 1);
if (typeof DecompressionStream === "undefined") {
  trouble(
    "This browser cannot unpack the masks, as it has no DecompressionStream. " +
      "Firefox 113, Chrome 103, Safari 16.4 and later have it.",
  );
} else {
  show(0);
}
