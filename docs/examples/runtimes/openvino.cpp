// What a finished model decides, in C++ with OpenVINO: ./decide attached.xml image.f32 1 3 256 256
// The headers and libraries of the Python package suffice: pip install openvino. See docs/runtimes.md.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <openvino/openvino.hpp>

int main(int count, char** given) {
    ov::Shape shape;
    for (int at = 3; at < count; ++at) shape.push_back(std::strtoul(given[at], nullptr, 10));
    ov::Tensor image(ov::element::f32, shape);
    std::ifstream(given[2], std::ios::binary).read(static_cast<char*>(image.data()), image.get_byte_size());

    // Without it, many processors compute in bfloat16, and raw scores move.
    auto exact = ov::hint::inference_precision(ov::element::f32);
    ov::InferRequest request = ov::Core().compile_model(given[1], "CPU", exact).create_infer_request();
    request.set_input_tensor(image);
    request.infer();

    bool anomalous = request.get_tensor("pred_label").data<bool>()[0];
    float score = request.get_tensor("pred_score").data<float>()[0];
    ov::Tensor mask = request.get_tensor("pred_mask");  // u8 in an IR, bool in an ONNX file: a byte each
    auto* pixels = static_cast<const unsigned char*>(mask.data());
    auto marked = std::count(pixels, pixels + mask.get_size(), 1);
    std::printf("%s, score %.6f, %ld of %zu pixels\n", anomalous ? "anomalous" : "normal", score, marked, mask.get_size());
}
