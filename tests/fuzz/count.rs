//! An allocator that counts what is allocated now, and the most that was.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};

static NOW: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);
static BEGIN: AtomicUsize = AtomicUsize::new(0);
static TOTAL: AtomicUsize = AtomicUsize::new(0);

struct Counting;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn more(bytes: usize) {
    TOTAL.fetch_add(bytes, Ordering::Relaxed);
    let now = NOW.fetch_add(bytes, Ordering::Relaxed) + bytes;
    PEAK.fetch_max(now, Ordering::Relaxed);
}

fn less(bytes: usize) {
    NOW.fetch_sub(bytes, Ordering::Relaxed);
}

// SAFETY: every call goes to the system's allocator as it came; counting allocates nothing.
#[allow(unsafe_code)]
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        more(layout.size());
        // SAFETY: the caller keeps the contract, which is the same.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        less(layout.size());
        // SAFETY: as above.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        more(layout.size());
        // SAFETY: as above.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        more(size);
        less(layout.size());
        // SAFETY: as above.
        unsafe { System.realloc(pointer, layout, size) }
    }
}

/// Begins to count anew.
pub(crate) fn begin() {
    let now = NOW.load(Ordering::Relaxed);
    BEGIN.store(now, Ordering::Relaxed);
    PEAK.store(now, Ordering::Relaxed);
    TOTAL.store(0, Ordering::Relaxed);
}

/// The most bytes that were allocated at once since [`begin`], beyond those that were then. What the C library of the
/// cryptography allocates for itself is not among them.
pub(crate) fn peak() -> usize {
    PEAK.load(Ordering::Relaxed)
        .saturating_sub(BEGIN.load(Ordering::Relaxed))
}

/// All bytes that were allocated since [`begin`], also those that were given back: what was zeroed, copied or wiped.
pub(crate) fn total() -> usize {
    TOTAL.load(Ordering::Relaxed)
}
