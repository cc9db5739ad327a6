#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| serve_here::engine::http1::fuzz::chunked(data));
