// Runs ONNX models in one of ONNX Runtime's packages for JavaScript, for another process: node node.cjs PACKAGE
//
// A frame comes on stdin, its answer goes to stdout: the length of a header in four bytes, little-endian; the header in
// JSON; the bytes that the header announces. An answer is { error } where something failed.
"use strict";
const fs = require("node:fs");
const path = require("node:path");

const NAME = process.argv[2];
const IS_WEB = NAME === "onnxruntime-web";
const TYPES = {
  float32: Float32Array, float64: Float64Array, float16: globalThis.Float16Array ?? Uint16Array, bool: Uint8Array,
  int8: Int8Array, uint8: Uint8Array, int16: Int16Array, uint16: Uint16Array, int32: Int32Array, uint32: Uint32Array,
  int64: BigInt64Array, uint64: BigUint64Array,
};

const sessions = new Map();
let ort = null;

function read(size) {
  const buffer = Buffer.from(new ArrayBuffer(size));
  for (let at = 0; at < size; ) {
    const got = fs.readSync(0, buffer, at, size - at, null);
    if (got === 0) process.exit(0);  // whoever asked is gone
    at += got;
  }
  return buffer;
}

function write(buffer) {
  for (let at = 0; at < buffer.length; ) at += fs.writeSync(1, buffer, at);
}

function start() {
  console.log = console.info = console.error;  // stdout is for frames
  ort = require(require.resolve(NAME, { paths: [process.cwd()] }));
  if (IS_WEB) ort.env.wasm.numThreads = 1;
  return { version: ort.env.versions[IS_WEB ? "web" : "node"] };
}

async function load({ id, file, size, external, options }) {
  let model = file;
  if (file === null) {
    model = read(size);
  } else if (IS_WEB) {
    const data = (name) => fs.readFileSync(path.join(path.dirname(file), name));
    model = fs.readFileSync(file);
    options.externalData = external.map((name) => ({ path: name, data: data(name) }));
  }
  sessions.set(id, await ort.InferenceSession.create(model, { logSeverityLevel: 4, ...options }));
  return {};
}

async function run({ id, tensors }) {
  const feeds = {};
  for (const { name, type, dims, size } of tensors) {
    const buffer = read(size).buffer;  // read before anything can fail, so that the next frame is found
    feeds[name] = [type, TYPES[type] && new TYPES[type](buffer), dims];
  }
  for (const name in feeds) feeds[name] = new ort.Tensor(...feeds[name]);
  const results = Object.entries(await sessions.get(id).run(feeds));
  const bytes = results.map(([, { data }]) => Buffer.from(data.buffer, data.byteOffset, data.byteLength));
  const told = results.map(([name, { type, dims }], index) => ({ name, type, dims, size: bytes[index].length }));
  return { tensors: told, bytes };
}

function forget({ ids }) {
  for (const id of ids) {
    sessions.get(id)?.release();
    sessions.delete(id);
  }
  return {};
}

async function main() {
  const actions = { start, load, run, forget };
  for (;;) {
    const question = JSON.parse(read(read(4).readUInt32LE(0)).toString());
    let answer;
    try {
      answer = await actions[question.action](question);
    } catch (error) {
      answer = { error: String(error.message ?? error), code: error.code ?? null };
    }
    const { bytes = [], ...header } = answer;
    const text = Buffer.from(JSON.stringify(header));
    const length = Buffer.alloc(4);
    length.writeUInt32LE(text.length);
    [length, text, ...bytes].forEach(write);
  }
}

main();
