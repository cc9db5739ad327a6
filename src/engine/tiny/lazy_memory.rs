//! An allocator that survives a library's greed.
//!
//! When a client leaves in the middle of its content, `tiny_http` throws the
//! rest away through a buffer as long as all that is missing. The length is the
//! client's word: 100 GB in one header field, and the allocation fails and ends
//! the whole process. The buffer is never filled, because the connection is
//! closed by then. So allocations of that size become memory that costs nothing
//! until it is written to, and everything else goes to the system as ever.
#![allow(unsafe_code, reason = "an allocator is unsafe by its nature")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::ptr;

/// From here on memory is mapped without a reservation. Nothing in this program
/// asks for so much.
const LAZY_BYTES: usize = 1 << 30;

/// A client's Content-Length above this (32 TiB) is more than can be mapped.
pub const MAX_LENGTH: u64 = 1 << 45;

struct LazyMemory;

#[global_allocator]
static MEMORY: LazyMemory = LazyMemory;

// SAFETY: both halves uphold the contract of `GlobalAlloc`: below `LAZY_BYTES`
// everything is the system's; from there on a mapping is made, zeroed and
// page-aligned, and unmapped with the size it was made with. Which half owns a
// block follows from its layout alone, and `realloc` never crosses over.
unsafe impl GlobalAlloc for LazyMemory {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if layout.size() >= LAZY_BYTES {
            return map(layout.size());
        }
        // SAFETY: the caller's contract is the system's.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        if layout.size() >= LAZY_BYTES {
            return map(layout.size());
        }
        // SAFETY: the caller's contract is the system's.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        // SAFETY: the block was made by the same half; see above.
        unsafe {
            if layout.size() >= LAZY_BYTES {
                libc::munmap(block.cast(), layout.size());
            } else {
                System.dealloc(block, layout);
            }
        }
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        if layout.size() < LAZY_BYTES && size < LAZY_BYTES {
            // SAFETY: the caller's contract is the system's.
            return unsafe { System.realloc(block, layout, size) };
        }
        // SAFETY: the new layout has the old alignment and a size the caller
        // vouches for; both blocks are at least as long as what is copied.
        unsafe {
            let new = self.alloc(Layout::from_size_align_unchecked(size, layout.align()));
            if !new.is_null() {
                ptr::copy_nonoverlapping(block, new, layout.size().min(size));
                self.dealloc(block, layout);
            }
            new
        }
    }
}

fn map(size: usize) -> *mut u8 {
    // SAFETY: a new private mapping touches nothing that exists.
    let block = unsafe {
        libc::mmap(
            ptr::null_mut(),
            size,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
            -1,
            0,
        )
    };
    if block == libc::MAP_FAILED {
        ptr::null_mut()
    } else {
        block.cast()
    }
}
