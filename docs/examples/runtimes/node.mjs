// What a finished model decides, in Node.js: node node.mjs attached.onnx image.f32 1 3 256 256
// npm install --ignore-scripts onnxruntime-node
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";

const ort = createRequire(`${process.cwd()}/`)("onnxruntime-node");
const [model, image, ...shape] = process.argv.slice(2);
const bytes = readFileSync(image);
const values = new Float32Array(bytes.buffer.slice(bytes.byteOffset, bytes.byteOffset + bytes.byteLength));

const session = await ort.InferenceSession.create(model);
const input = new ort.Tensor("float32", values, shape.map(Number));
const { pred_score, pred_label, pred_mask } = await session.run({ [session.inputNames[0]]: input });

const marked = pred_mask.data.reduce((sum, pixel) => sum + pixel, 0);
const verdict = pred_label.data[0] ? "anomalous" : "normal";
console.log(`${verdict}, score ${pred_score.data[0].toFixed(6)}, ${marked} of ${pred_mask.data.length} pixels`);
