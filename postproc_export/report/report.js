/* Shows what Python counted. Python tabulates the settings of each level: the sensitivities from which on something else
   is called anomalous, with all counts and rates. Here a setting is looked up, and its boundary computed exactly. */
"use strict";
(() => {
  const data = JSON.parse(document.getElementById("report-data").textContent);
  const f32 = Math.fround;

  /* float32: their order, and the first one for which something holds */
  const float = new Float32Array(1), bits = new Int32Array(float.buffer);
  const ranked = (rank) => { bits[0] = Math.abs(rank); return rank < 0 ? -float[0] : float[0]; };
  const firstWhere = (holds) => {
    let low = -0x7f7fffff, high = 0x7f800000; // all finite ones, and infinity
    while (low < high) {
      const middle = Math.floor((low + high) / 2);
      if (holds(ranked(middle))) high = middle; else low = middle + 1;
    }
    return ranked(low);
  };
  const shortest = (value) => { // the shortest decimal that reads back to the same float32
    for (let digits = 1; digits < 10 && Number.isFinite(value); digits++) {
      const decimal = Number(value.toPrecision(digits));
      if (f32(decimal) === value) return decimal;
    }
    return value;
  };

  /* docs/definition.md sections 3 and 4 */
  const UNIT = 2 ** -149; // every float32 is a whole number of these
  const whole = (value) => BigInt(value / UNIT);
  const normalised = (level, value) => {
    const unit = f32(f32(f32(value - level.threshold) / f32(level.max - level.min)) + 0.5);
    return Math.min(Math.max(unit, 0), 1);
  };
  const rounded = (value, half) => { // to a narrower type, ties to even
    float[0] = value;
    if (half === "bfloat16") {
      bits[0] = (bits[0] + 0x7fff + ((bits[0] >>> 16) & 1)) & 0xffff0000;
      return float[0];
    }
    const unit = 2 ** Math.max(((bits[0] >>> 23) & 255) - 127 - 10, -24), steps = value / unit;
    const even = Math.abs(steps % 1) === 0.5 ? 2 * Math.round(steps / 2) : Math.round(steps);
    return Math.abs(even * unit) > 65504 ? Math.sign(value) * Infinity : even * unit;
  };
  const boundaryAt = (level, sensitivity) => {
    let found;
    if (level.comparison === "gt") {
      const cut = f32(1 - sensitivity);
      found = firstWhere((value) => normalised(level, value) > cut);
    } else if (sensitivity === 1) {
      return -Infinity;
    } else {
      const half = 1n << 148n, span = whole(level.max) - whole(level.min);
      const exact = (whole(level.threshold) << 149n) + (half - whole(sensitivity)) * span;
      found = firstWhere((value) => value === Infinity || (whole(value) << 149n) >= exact);
    }
    if (found !== 0 && Math.abs(found) < 2 ** -126) return NaN; // subnormal: no file can have it
    if (level.half === null) return found;
    const narrow = firstWhere((value) => rounded(value, level.half) >= found);
    return narrow !== 0 && Math.abs(narrow) < 2 ** -126 ? found : narrow;
  };

  /* where a raw value stands in the plots: as in axis.py */
  const placeOf = ({ kind, lowest, highest, low, high, tail }, raw) => {
    const value = Math.min(Math.max(raw, lowest), highest), width = high - low;
    if (kind === "linear") return value;
    if (kind === "log") return Math.log(value);
    if (value > high) return 1 + (tail * Math.log1p((value - high) / width)) / Math.log1p((highest - high) / width);
    if (value < low) return (-tail * Math.log1p((low - value) / width)) / Math.log1p((low - lowest) / width);
    return (value - low) / width;
  };

  /* looking a setting up */
  const indexOf = (level, sensitivity) => { // the last one that begins at or below it
    let low = 0, high = level.least.length;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (f32(level.least[middle]) <= sensitivity) low = middle + 1; else high = middle;
    }
    return low - 1;
  };
  const share = (part, of) => (of ? part / of : null);
  const figuresOf = (level, index) => {
    const { normal, anomalous } = level, [tp, tpMost] = [level.tp[index], level.tpMost[index]];
    const [fp, fpMost] = [level.fp[index], level.fpMost[index]];
    return {
      tp: [tp, tpMost], fn: [anomalous - tpMost, anomalous - tp], fp: [fp, fpMost], tn: [normal - fpMost, normal - fp],
      recall: [share(tp, anomalous), share(tpMost, anomalous)],
      precision: tpMost + fp ? [share(tp, tp + fpMost) ?? 0, share(tpMost, tpMost + fp)] : [null, null],
      f1: [share(2 * tp, tp + fpMost + anomalous) ?? 0, share(2 * tpMost, tpMost + fp + anomalous)],
      fpr: [share(fp, normal), share(fpMost, normal)],
    };
  };
  const accepted = (level, text, per) => { // the last setting with at most so many false alarms, for certain
    const [, digits, decimals = ""] = /^(\d+)(?:\.(\d*))?$/.exec(text) ?? [];
    if (digits === undefined) return null;
    const limit = BigInt(digits + decimals) * BigInt(level.normal), scale = BigInt(per) * 10n ** BigInt(decimals.length);
    return level.fpMost.findLastIndex((most) => BigInt(most) * scale <= limit);
  };

  /* showing it */
  const byId = (id) => document.getElementById(id);
  const number = (value) => value.toLocaleString("en-US");
  const put = (name, figure, [low, high], text) => {
    for (const each of document.querySelectorAll(`[data-level="${name}"] [data-figure="${figure}"]`)) {
      each.textContent = text;
      each.dataset.low = String(low);
      each.dataset.high = String(high);
    }
  };
  const set = {}; // the sensitivity of each level as it is spelt
  const views = {};
  const draw = (name, row) => {
    for (const view of views[name] ?? []) view.data("current", [row]).runAsync();
  };

  /* example images and folders: decided anew on their raw values */
  const floats = (text) => { // base64 of float32, the lowest byte first
    const bytes = Uint8Array.from(atob(text), (each) => each.charCodeAt(0)), view = new DataView(bytes.buffer);
    return Float32Array.from({ length: bytes.length / 4 }, (_, at) => view.getFloat32(4 * at, true));
  };
  for (const each of data.examples) each.raw = each.map === null ? null : floats(each.map);
  data.folders = data.folders.map(floats);
  const decide = (boundary) => { // images
    data.examples.forEach(({ score, truth }, index) => {
      const called = !(f32(score) < boundary), chip = document.querySelector(`[data-example="${index}"] [data-verdict]`);
      const words = { true: ["missed", "found"], false: ["passed", "false alarm"], null: ["called normal", "called anomalous"] };
      chip.textContent = words[truth][Number(called)];
      chip.className = `chip ${truth === null ? "" : called === truth ? "right" : "wrong"}`;
    });
    data.folders.forEach((scores, index) => {
      const row = document.querySelector(`[data-folder="${index}"]`);
      const called = scores.reduce((sum, score) => sum + Number(!(score < boundary)), 0);
      row.querySelector("[data-called]").textContent = number(called);
      row.querySelector(".bar").style.width = `${(100 * called) / scores.length}%`;
    });
  };
  const paint = (boundary) => { // masks
    data.examples.forEach(({ raw, size: [rows, columns] }, index) => {
      const canvas = document.querySelector(`[data-example="${index}"] canvas`);
      if (raw === null || canvas === null) return;
      [canvas.width, canvas.height] = [columns, rows];
      const context = canvas.getContext("2d"), image = context.createImageData(columns, rows);
      let marked = 0;
      raw.forEach((value, at) => {
        if (value < boundary) return;
        marked++;
        image.data.set([255, 140, 0, (at + Math.floor(at / columns)) % 3 ? 120 : 210], 4 * at);
      });
      context.putImageData(image, 0, 0);
      canvas.dataset.marked = String(marked);
    });
  };

  const show = (name, text) => {
    const level = data.levels[name], value = Number(text);
    const field = byId(`${name}-sensitivity`), isLegal = String(text).trim() !== "" && value >= 0 && value <= 1;
    field.setAttribute("aria-invalid", String(!isLegal));
    if (!isLegal) return;
    set[name] = String(value);
    if (document.activeElement !== field) field.value = set[name];
    const sensitivity = f32(value), boundary = boundaryAt(level, sensitivity);
    const raw = shortest(boundary), unit = shortest(normalised(level, boundary));
    put(name, "sensitivity", [value, value], set[name]);
    const told = { "-Infinity": "none: all are anomalous", Infinity: "none: nothing finite is anomalous", NaN: "none that a file can have" };
    put(name, "boundary", [raw, raw], told[raw] ?? String(raw));
    put(name, "normalised", [unit, unit], Number.isNaN(unit) ? "-" : String(unit));
    const index = indexOf(level, sensitivity), slider = byId(`${name}-slider`);
    slider.value = index < 0 ? Math.round(1000 * value) : index;
    slider.setAttribute("aria-valuetext", `sensitivity ${set[name]}`);
    if (index >= 0) {
      const figures = figuresOf(level, index);
      for (const [figure, limits] of Object.entries(figures)) {
        const spelt = limits[0] === limits[1] ? number(limits[0] ?? 0) : limits.map(number).join(" to ");
        put(name, figure, limits, level.texts[figure]?.[index] ?? spelt);
      }
      const middles = Object.entries(figures).map(([figure, [low, high]]) => [figure, low === null ? null : (low + high) / 2]);
      draw(name, { place: placeOf(level.axis, boundary), ...Object.fromEntries(middles) });
    }
    if (name === "image") decide(boundary); else paint(boundary);
    command();
    tell(name);
  };
  const waiting = {};
  const tell = (name) => { // to a screen reader, once the control rests
    clearTimeout(waiting[name]);
    waiting[name] = setTimeout(() => {
      byId(`${name}-live`).textContent = `Sensitivity ${set[name]}: ${byId(`${name}-sentence`).textContent}`;
    }, 600);
  };
  const command = () => {
    const options = Object.keys(data.levels).map((name) => ` --${name}-sensitivity ${set[name]}`);
    if (byId("update-command")) byId("update-command").textContent = data.update[0] + options.join("") + data.update[1];
  };

  for (const [name, level] of Object.entries(data.levels)) {
    for (const key of ["threshold", "min", "max"]) level[key] = f32(level[key]);
    const field = byId(`${name}-sensitivity`), note = byId(`${name}-note`), accept = byId(`${name}-accept`);
    const move = (index) => show(name, level.decimal[Math.min(Math.max(index, 0), level.decimal.length - 1)]);
    const step = (by) => {
      note.textContent = "";
      if (level.least.length) move(indexOf(level, f32(Number(set[name]))) + by);
      else show(name, Math.min(Math.max(Math.round(1000 * Number(set[name])) + by, 0), 1000) / 1000);
    };
    field.addEventListener("input", () => { note.textContent = ""; show(name, field.value); });
    byId(`${name}-slider`).addEventListener("input", (event) => {
      note.textContent = "";
      if (level.least.length) move(Number(event.target.value)); else show(name, event.target.value / 1000);
    });
    byId(`${name}-fewer`).addEventListener("click", () => step(-1));
    byId(`${name}-more`).addEventListener("click", () => step(1));
    byId(`${name}-reset`).addEventListener("click", () => { note.textContent = ""; show(name, level.sensitivity); });
    accept?.addEventListener("input", () => {
      const index = accept.value === "" ? null : accepted(level, accept.value, data.per[name]);
      accept.setAttribute("aria-invalid", String(accept.value !== "" && index === null));
      if (index === null) note.textContent = "";
      else if (index < 0) note.textContent = "No setting keeps to that.";
      else {
        move(index);
        note.textContent = `Sensitivity ${set[name]} is the most sensitive setting that keeps to that.`;
      }
    });
  }

  byId("copy-command")?.addEventListener("click", async () => {
    const code = byId("update-command"), told = byId("copied");
    try {
      await navigator.clipboard.writeText(code.textContent);
    } catch { // not every browser lets a page opened from disk do that
      getSelection().selectAllChildren(code);
      document.execCommand("copy");
    }
    told.textContent = "Copied.";
  });

  addEventListener("beforeprint", () => document.querySelectorAll("details").forEach((each) => { each.open = true; }));

  const embedding = Object.entries(data.plots).map(async ([id, spec]) => {
    const how = { mode: "vega", renderer: "svg", actions: false, defaultStyle: false };
    const { view } = await vegaEmbed(byId(id), spec, how);
    byId(id).querySelector("svg").setAttribute("aria-hidden", "true"); // its place has a name and says what it shows
    (views[byId(id).closest("[data-level]").dataset.level] ??= []).push(view);
  });
  Promise.all(embedding).then(() => {
    for (const [name, level] of Object.entries(data.levels)) show(name, level.sensitivity);
    document.documentElement.dataset.ready = "true";
  });
})();
