//! Arbitrary bytes in chunks of any size, for the decoders of both sides.
//!
//! The first byte of an input is the size of the chunks, 0 for all at once; the rest is the stream. What must hold:
//! no panic; no allocation beyond what was received or announced by a good header; chunks change nothing; and what was
//! decoded becomes the same frame again and again.
#![no_main]

use std::alloc::{GlobalAlloc, Layout, System};
use std::fmt::Debug;
use std::sync::atomic::{AtomicUsize, Ordering};

use akidb_protocol::{
    GatewayCodec, GatewayMessage, HEADER_BYTES, Header, ProtocolError, WorkerCodec, WorkerMessage,
};
use bytes::BytesMut;
use libfuzzer_sys::fuzz_target;
use tokio_util::codec::{Decoder, Encoder};

/// What a decoder may take for lists and error texts: serde reserves at most a mebibyte on an announced length.
const SMALL_BYTES: usize = 1 << 20;

/// Size of the largest allocation since it was last set to 0.
static LARGEST: AtomicUsize = AtomicUsize::new(0);

struct Watched;

// SAFETY: the system's allocator does everything.
unsafe impl GlobalAlloc for Watched {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        LARGEST.fetch_max(layout.size(), Ordering::Relaxed);
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        LARGEST.fetch_max(size, Ordering::Relaxed);
        unsafe { System.realloc(pointer, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Watched = Watched;

fuzz_target!(|input: &[u8]| {
    let Some((chunk_bytes, stream)) = input.split_first() else { return };
    let chunk_bytes = usize::from(*chunk_bytes);
    check::<GatewayCodec, WorkerCodec, WorkerMessage>(stream, chunk_bytes);
    check::<WorkerCodec, GatewayCodec, GatewayMessage>(stream, chunk_bytes);
});

/// Reads the stream with `R`; what comes out is written with `W`.
fn check<R, W, M>(stream: &[u8], chunk_bytes: usize)
where
    R: Decoder<Item = M, Error = ProtocolError> + Default,
    W: Encoder<M, Error = ProtocolError> + Default,
    M: Debug,
{
    let whole = read::<R>(stream, stream.len());
    if chunk_bytes > 0 {
        let in_chunks = read::<R>(stream, chunk_bytes);
        assert_eq!(format!("{whole:?}"), format!("{in_chunks:?}"), "chunks of {chunk_bytes} bytes");
    }
    for message in whole.0 {
        // Frames are compared, not messages: a number that is none differs from itself.
        let first = write::<W, M>(message);
        let mut received = first.clone();
        let again = R::default().decode(&mut received).expect("our own frame is refused");
        assert!(received.is_empty());
        assert_eq!(first, write::<W, M>(again.expect("our own frame is not whole")));
    }
}

/// All messages of a stream, and why it was given up.
fn read<R>(stream: &[u8], chunk_bytes: usize) -> (Vec<R::Item>, Option<String>)
where
    R: Decoder<Error = ProtocolError> + Default,
{
    let mut codec = R::default();
    let mut received = BytesMut::new();
    let mut messages = Vec::new();
    for chunk in stream.chunks(chunk_bytes.max(1)) {
        received.extend_from_slice(chunk);
        loop {
            match watched(&mut received, |received| codec.decode(received)) {
                Ok(Some(message)) => messages.push(message),
                Ok(None) => break,
                Err(error) => return (messages, Some(error.to_string())),
            }
        }
    }
    loop {
        match watched(&mut received, |received| codec.decode_eof(received)) {
            Ok(Some(message)) => messages.push(message),
            Ok(None) => return (messages, None),
            Err(error) => return (messages, Some(error.to_string())),
        }
    }
}

/// Decodes once, and looks at the largest allocation that it made.
fn watched<T>(received: &mut BytesMut, decode: impl FnOnce(&mut BytesMut) -> T) -> T {
    let header = received.first_chunk::<HEADER_BYTES>().map(Header::decode);
    let announced_bytes = header.and_then(Result::ok).map_or(0, |header| header.body_bytes as usize);
    let allowed_bytes = SMALL_BYTES + 2 * received.len().max(HEADER_BYTES + announced_bytes);
    LARGEST.store(0, Ordering::Relaxed);
    let decoded = decode(received);
    let largest_bytes = LARGEST.load(Ordering::Relaxed);
    assert!(largest_bytes <= allowed_bytes, "{largest_bytes} bytes at once, {allowed_bytes} were announced");
    decoded
}

fn write<W, M>(message: M) -> BytesMut
where
    W: Encoder<M, Error = ProtocolError> + Default,
{
    let mut frame = BytesMut::new();
    W::default().encode(message, &mut frame).expect("what was decoded cannot be encoded");
    frame
}
