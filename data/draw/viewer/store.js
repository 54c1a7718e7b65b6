// Frames out of the page: base64 -> bytes -> the picture and the label maps, a few of them kept.
// The format is described in coding.py.

const DATA = JSON.parse(document.getElementById("data").textContent);
const FRAMES = DATA.numbers.length;
const SOURCES = [...DATA.runs, ...(DATA.truth ? [DATA.truth] : [])]; // what has segments: the runs, then the truth
const TRUTH = DATA.truth ? DATA.runs.length : -1;
const KEPT_BYTES = 96 << 20;

function bytesOf(base64) {
  if (Uint8Array.fromBase64) return Uint8Array.fromBase64(base64);
  const text = atob(base64);
  const bytes = new Uint8Array(text.length);
  for (let i = 0; i < bytes.length; i++) bytes[i] = text.charCodeAt(i);
  return bytes;
}

async function inflate(bytes) {
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate-raw"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

class Varints {
  constructor(bytes, at = 0) {
    this.bytes = bytes;
    this.at = at;
  }

  next() {
    let value = 0;
    let scale = 1;
    for (;;) {
      const byte = this.bytes[this.at++];
      value += (byte & 127) * scale;
      if (byte < 128) return value;
      scale *= 128;
    }
  }
}

// One label map: index (a segment of the frame for each pixel), and of each such segment its number and its area.
function readMap(numbers, width, height) {
  const count = numbers.next();
  const segments = new Uint32Array(count);
  const areas = new Uint32Array(count);
  for (let i = 0; i < count; i++) {
    segments[i] = numbers.next();
    areas[i] = numbers.next();
  }
  let exceptions = numbers.next();
  const skips = new Varints(numbers.bytes, 0);
  const skipBytes = numbers.next();
  skips.at = numbers.at;
  numbers.at += skipBytes;

  const index = new Uint16Array(width * height);
  if (!exceptions) return { index, segments, areas }; // nothing but zeros, as where no truth is given
  let skip = skips.next();
  for (let y = 0, i = 0; y < height; y++) {
    let left = y ? index[i - width] : 0;
    let corner = left;
    for (let x = 0; x < width; x++, i++) {
      const up = y ? index[i - width] : 0;
      let value = up === corner ? left : up;
      if (skip-- === 0) {
        value = numbers.next();
        skip = --exceptions ? skips.next() : Infinity;
      }
      index[i] = value;
      left = value;
      corner = up;
    }
  }
  return { index, segments, areas };
}

class FrameStore {
  constructor() {
    const each = DATA.width * DATA.height * (4 + 2 * (DATA.runs.length + 1));
    this.most = Math.min(96, Math.max(8, Math.floor(KEPT_BYTES / each)));
    this.kept = new Map(); // frame -> promise of it, the one used last at the end
  }

  // { picture, maps }; picture k and maps k come from the same piece of the page.
  get(k) {
    let frame = this.kept.get(k);
    if (frame) {
      this.kept.delete(k);
    } else {
      frame = this.read(k);
    }
    this.kept.set(k, frame);
    for (const [old, promise] of this.kept) {
      if (this.kept.size <= this.most) break;
      this.kept.delete(old);
      promise.then(
        (f) => f.picture.close(),
        () => {},
      );
    }
    return frame;
  }

  async read(k) {
    const key = DATA.keys.findLast((n) => n <= k);
    const bytes = bytesOf(await this.text(k));
    const end = 4 + new DataView(bytes.buffer, bytes.byteOffset).getUint32(0, true);
    const [raw, picture] = await Promise.all([
      inflate(bytes.subarray(4, end)),
      createImageBitmap(new Blob([bytes.subarray(end)])),
    ]);
    const numbers = new Varints(raw);
    const maps = [];
    for (let s = 0; s <= DATA.runs.length; s++) maps.push(readMap(numbers, DATA.width, DATA.height));
    return { k, picture: key === k ? picture : this.over((await this.get(key)).picture, picture), maps };
  }

  // What has changed, over the whole picture that it has changed since.
  over(key, change) {
    const canvas = new OffscreenCanvas(DATA.width, DATA.height);
    const context = canvas.getContext("2d");
    for (const picture of [key, change]) context.drawImage(picture, 0, 0);
    change.close();
    return canvas.transferToImageBitmap();
  }

  // The page can be used while the browser still reads it: wait for a frame that has not come yet.
  async text(k) {
    for (;;) {
      const whole = document.readyState !== "loading" || document.getElementById(`f${k + 1}`);
      const element = document.getElementById(`f${k}`);
      if (whole && element) return element.textContent;
      if (whole) throw new Error(`Frame ${k} is missing: the file is cut off.`);
      await new Promise((done) => setTimeout(done, 30));
    }
  }
}

// ---------------------------------------------------------------------------------------------------------------------
// Segments
// ---------------------------------------------------------------------------------------------------------------------

function segmentOf(source, number) {
  const [klass, track, color, colorblind, seen] = SOURCES[source].segments[number];
  return { source, number, klass, track, color, colorblind, seen };
}

function nameOf(segment) {
  const name = segment.klass === DATA.void ? "void" : DATA.classes[segment.klass].name;
  return segment.track ? `${name} ${segment.track}` : name;
}

// "frames 3 to 20, 2 gaps": when a segment is seen.
function seenText(segment) {
  const { seen } = segment;
  const first = DATA.numbers[seen[0]];
  const last = DATA.numbers[seen[seen.length - 1]];
  const gaps = seen.length / 2 - 1;
  const span = first === last ? `frame ${first}` : `frames ${first} to ${last}`;
  return span + (gaps ? `, ${gaps} gap${gaps > 1 ? "s" : ""}` : "");
}

function isSeen(segment, k) {
  for (let i = 0; i < segment.seen.length; i += 2) if (segment.seen[i] <= k && k <= segment.seen[i + 1]) return true;
  return false;
}

// LINKS.get("0 2").get(5): the segments of source 2 that are the same thing as segment 5 of source 0.
const LINKS = new Map();
for (const { first, second, pairs } of DATA.links) {
  for (const [from, to, turned] of [
    [first, second, false],
    [second, first, true],
  ]) {
    const links = new Map();
    for (const [a, b] of pairs) {
      const [key, value] = turned ? [b, a] : [a, b];
      if (!links.has(key)) links.set(key, new Set());
      links.get(key).add(value);
    }
    LINKS.set(`${from} ${to}`, links);
  }
}
const NOTHING = new Set();

// The numbers of the segments in another source that are the same thing as this one.
function counterparts(segment, source) {
  if (segment.source === source) return new Set([segment.number]);
  if (segment.track) return LINKS.get(`${segment.source} ${source}`)?.get(segment.number) ?? NOTHING;
  const found = SOURCES[source].segments.findIndex(([klass, track]) => klass === segment.klass && !track);
  return found < 0 ? NOTHING : new Set([found]);
}
