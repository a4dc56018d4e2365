"""What a finished model decides, in OpenCV: python opencv.py attached.onnx image.f32 1 3 256 256."""

import sys

import cv2
import numpy as np

model, image, *shape = sys.argv[1:]
net = cv2.dnn.readNetFromONNX(model)  # attached with --for opencv
net.setInput(np.fromfile(image, np.float32).reshape(list(map(int, shape))))
pred_score, pred_label, pred_mask = net.forward(["pred_score", "pred_label", "pred_mask"])  # all float32
verdict = "anomalous" if pred_label.item() else "normal"
print(f"{verdict}, score {pred_score.item():.6f}, {np.count_nonzero(pred_mask)} of {pred_mask.size} pixels")
