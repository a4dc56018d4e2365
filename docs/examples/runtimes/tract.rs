// What a finished model decides, in Rust with tract: ./decide attached.onnx image.f32 1 3 256 256
// It takes tract's C interface, which the library in its Python package has: pip install tract. See docs/runtimes.md.
// In a project of your own take the crate tract-onnx, which is the same engine.
use std::ffi::{c_char, c_void, CStr, CString};
use std::ptr::{null, null_mut};

const F32: u32 = 0x34;

extern "C" {
    fn tract_get_last_error() -> *const c_char;
    fn tract_onnx_create(onnx: *mut *mut c_void) -> u32;
    fn tract_onnx_load(onnx: *const c_void, path: *const c_char, model: *mut *mut c_void) -> u32;
    fn tract_inference_fact_parse(model: *mut c_void, text: *const c_char, fact: *mut *mut c_void) -> u32;
    fn tract_inference_model_set_input_fact(model: *mut c_void, index: usize, fact: *const c_void) -> u32;
    fn tract_inference_model_output_count(model: *const c_void, count: *mut usize) -> u32;
    fn tract_inference_model_set_output_fact(model: *mut c_void, index: usize, fact: *const c_void) -> u32;
    fn tract_inference_model_into_model(model: *mut *mut c_void, typed: *mut *mut c_void) -> u32;
    fn tract_model_into_runnable(model: *mut *mut c_void, runnable: *mut *mut c_void) -> u32;
    fn tract_tensor_from_bytes(kind: u32, rank: usize, shape: *const usize, data: *const c_void,
                               tensor: *mut *mut c_void) -> u32;
    fn tract_runnable_run(runnable: *mut c_void, inputs: *mut *mut c_void, outputs: *mut *mut c_void) -> u32;
    fn tract_tensor_as_bytes(tensor: *mut c_void, kind: *mut u32, rank: *mut usize, shape: *mut *const usize,
                             data: *mut *const c_void) -> u32;
}

/// Ends the program with what tract says where a call failed.
unsafe fn check(code: u32) {
    if code != 0 {
        panic!("{}", CStr::from_ptr(tract_get_last_error()).to_string_lossy());
    }
}

/// Returns the elements of an output, of one byte or of four.
unsafe fn elements<'a, T>(tensor: *mut c_void) -> &'a [T] {
    let (mut rank, mut shape, mut data) = (0, null(), null());
    check(tract_tensor_as_bytes(tensor, null_mut(), &mut rank, &mut shape, &mut data));
    let size = std::slice::from_raw_parts(shape, rank).iter().product();
    std::slice::from_raw_parts(data as *const T, size)
}

fn main() {
    let given: Vec<String> = std::env::args().collect();
    let shape: Vec<usize> = given[3..].iter().map(|axis| axis.parse().unwrap()).collect();
    let image = std::fs::read(&given[2]).unwrap();
    let path = CString::new(given[1].as_str()).unwrap();
    let fact = CString::new(format!("{},f32", given[3..].join(","))).unwrap();
    unsafe {
        let (mut onnx, mut model, mut input, mut count) = (null_mut(), null_mut(), null_mut(), 0);
        check(tract_onnx_create(&mut onnx));
        check(tract_onnx_load(onnx, path.as_ptr(), &mut model));
        check(tract_inference_fact_parse(model, fact.as_ptr(), &mut input));
        check(tract_inference_model_set_input_fact(model, 0, input));
        check(tract_inference_model_output_count(model, &mut count));
        for index in 0..count {
            check(tract_inference_model_set_output_fact(model, index, null())); // shapes are inferred from the input's
        }
        let (mut typed, mut runnable, mut tensor) = (null_mut(), null_mut(), null_mut());
        check(tract_inference_model_into_model(&mut model, &mut typed));
        check(tract_model_into_runnable(&mut typed, &mut runnable));
        check(tract_tensor_from_bytes(F32, shape.len(), shape.as_ptr(), image.as_ptr() as *const c_void, &mut tensor));
        let mut outputs = vec![null_mut(); count];
        check(tract_runnable_run(runnable, &mut tensor, outputs.as_mut_ptr()));

        // The outputs come in the order of the file: pred_score, pred_label, anomaly_map, pred_mask.
        let (score, label) = (elements::<f32>(outputs[0])[0], elements::<u8>(outputs[1])[0]);
        let mask = elements::<u8>(outputs[3]);
        let marked = mask.iter().filter(|pixel| **pixel != 0).count();
        let verdict = if label != 0 { "anomalous" } else { "normal" };
        println!("{verdict}, score {score:.6}, {marked} of {} pixels", mask.len());
    }
}
