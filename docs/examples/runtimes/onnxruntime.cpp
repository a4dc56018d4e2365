// What a finished model decides, in C++ with ONNX Runtime: ./decide attached.onnx image.f32 1 3 256 256
// Headers and library are in the archive of a release of ONNX Runtime. See docs/runtimes.md.
#include <onnxruntime_cxx_api.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <vector>

int main(int count, char** given) {
    std::vector<int64_t> shape;
    size_t size = 1;
    for (int at = 3; at < count; ++at) {
        shape.push_back(std::strtoll(given[at], nullptr, 10));
        size *= shape.back();
    }
    std::vector<float> image(size);
    std::ifstream(given[2], std::ios::binary).read(reinterpret_cast<char*>(image.data()), size * sizeof(float));

    Ort::Env environment;
    Ort::Session session(environment, given[1], Ort::SessionOptions());
    Ort::AllocatorWithDefaultOptions allocator;
    auto name = session.GetInputNameAllocated(0, allocator);
    auto memory = Ort::MemoryInfo::CreateCpu(OrtArenaAllocator, OrtMemTypeDefault);
    auto input = Ort::Value::CreateTensor<float>(memory, image.data(), size, shape.data(), shape.size());
    const char* inputs[] = {name.get()};
    const char* outputs[] = {"pred_score", "pred_label", "pred_mask"};
    auto found = session.Run(Ort::RunOptions(), inputs, &input, 1, outputs, 3);

    float score = found[0].GetTensorData<float>()[0];
    bool anomalous = found[1].GetTensorData<bool>()[0];
    const bool* pixels = found[2].GetTensorData<bool>();
    size_t all = found[2].GetTensorTypeAndShapeInfo().GetElementCount();
    auto marked = std::count(pixels, pixels + all, true);
    std::printf("%s, score %.6f, %ld of %zu pixels\n", anomalous ? "anomalous" : "normal", score, marked, all);
}
