#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| serve_here::files::fuzz::range(data));
