//! The ring against real sockets: order, short writes, holds, wake-ups, and its end.

use super::setup::ZeroCopy;
use super::socket::tcp_pair;
use super::*;
use bytes::Bytes;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::rc::Rc;
use std::time::{Duration, Instant};

const LAYOUT: SlabLayout =
    SlabLayout { rx_chunk_bytes: 16 << 10, rx_chunks: 8, tx_chunk_bytes: 64 << 10, tx_chunks: 16 };

fn settings() -> RingSettings {
    RingSettings { sq_entries: 32, huge_pages: false, ..RingSettings::default() }
}

fn ring() -> Ring {
    Ring::new(&settings(), LAYOUT).unwrap()
}

fn unix_pair() -> (Rc<Socket>, UnixStream) {
    let (ours, peer) = UnixStream::pair().unwrap();
    (Rc::new(Socket::from(ours)), peer)
}

/// Turns until `count` completions of a kind came.
fn wait_for(ring: &mut Ring, kind: CompletionKind, count: usize) -> Vec<Completion> {
    let begun = Instant::now();
    let mut all = Vec::new();
    while all.iter().filter(|c: &&Completion| c.kind == kind).count() < count {
        assert!(begun.elapsed() < Duration::from_secs(20), "only {all:?}");
        ring.turn(Duration::from_millis(200), &mut all).unwrap();
    }
    all.retain(|completion| completion.kind == kind);
    all
}

/// A send chunk full of recognizable bytes.
fn filled_chunk(ring: &mut Ring, seed: u8, len: usize) -> (Segment, Vec<u8>) {
    let bytes: Vec<u8> = (0..len).map(|i| (i as u8).wrapping_mul(31).wrapping_add((i >> 8) as u8) ^ seed).collect();
    let slab = ring.slab_mut();
    let chunk = slab.take(Class::Tx).unwrap();
    assert_eq!(slab.append(chunk, &bytes), len);
    (Segment::Chunk { chunk, start: 0, len: len as u32 }, bytes)
}

fn release(ring: &mut Ring, segment: &Segment) {
    if let Segment::Chunk { chunk, .. } = segment {
        ring.slab_mut().release(*chunk);
    }
}

/// Takes a chain through whatever comes: short sends and broken chains are continued, as the engine does it.
fn send_all(ring: &mut Ring, socket: &Rc<Socket>, batches: &[Vec<Segment>]) {
    let mut first = 0;
    let mut skip_bytes = 0;
    while first < batches.len() {
        let chain: Vec<Outgoing<'_>> = batches[first..]
            .iter()
            .enumerate()
            .map(|(i, segments)| Outgoing {
                segments,
                skip_bytes: if i == 0 { skip_bytes } else { 0 },
                token: (first + i) as u64,
            })
            .collect();
        ring.send(socket, &chain).unwrap();
        for completion in wait_for(ring, CompletionKind::Send, chain.len()) {
            match completion.result {
                Ok(sent) => {
                    assert_eq!(completion.token as usize, first, "bytes of a later batch before the end of an earlier");
                    skip_bytes += sent as usize;
                    if skip_bytes == batches[first].iter().map(Segment::bytes).sum::<usize>() {
                        first += 1;
                        skip_bytes = 0;
                    }
                }
                Err(errno) => assert_eq!(errno, libc::ECANCELED),
            }
        }
    }
}

/// Every combination of settings that a user can choose.
fn variants() -> Vec<RingSettings> {
    let mut all = Vec::new();
    for taskrun in [TaskRun::Interrupt, TaskRun::Coop, TaskRun::Defer] {
        for registered_buffers in [false, true] {
            for read in [ReadMode::ReadFixed, ReadMode::Recv] {
                for write in [WriteMode::Sendmsg, WriteMode::SendmsgZc] {
                    let registered_ring = registered_buffers;
                    let zero_copy_bytes_min = 1000;
                    all.push(RingSettings {
                        taskrun,
                        registered_buffers,
                        read,
                        write,
                        registered_ring,
                        zero_copy_bytes_min,
                        ..settings()
                    });
                }
            }
        }
    }
    all.push(RingSettings { sqpoll_idle_ms: Some(1), ..settings() });
    all.push(RingSettings {
        sqpoll_idle_ms: Some(50),
        write: WriteMode::SendmsgZc,
        zero_copy_bytes_min: 0,
        ..settings()
    });
    all.push(RingSettings { huge_pages: true, sq_entries: 1, ..settings() });
    all
}

#[test]
fn every_variant_echoes_byte_for_byte() {
    for settings in variants() {
        let mut ring = Ring::new(&settings, LAYOUT).unwrap();
        let (ours, peer) = tcp_pair().unwrap();
        let socket = Rc::new(Socket::from(ours));
        socket.set_nodelay(true).unwrap();
        let echo = std::thread::spawn(move || {
            let (mut from, mut to) = (peer.try_clone().unwrap(), peer);
            std::io::copy(&mut from, &mut to).unwrap()
        });
        let mut expected = Vec::new();
        let mut batches = Vec::new();
        for i in 0..4u8 {
            let (segment, bytes) = filled_chunk(&mut ring, i, 20_000 + usize::from(i) * 7);
            expected.extend_from_slice(&bytes);
            let heap = Bytes::from(vec![b'a' + i; 3000]);
            expected.extend_from_slice(&heap);
            batches.push(vec![segment, Segment::Heap(heap)]);
        }
        let outgoing: Vec<Outgoing<'_>> =
            batches.iter().map(|segments| Outgoing { segments, skip_bytes: 0, token: 7 }).collect();
        ring.send(&socket, &outgoing).unwrap();
        let mut received = Vec::new();
        let mut sent = 0;
        let mut completions = Vec::new();
        let mut chunk = ring.slab_mut().take(Class::Rx).unwrap();
        ring.read(&socket, chunk, 9).unwrap();
        let begun = Instant::now();
        while received.len() < expected.len() {
            assert!(begun.elapsed() < Duration::from_secs(20), "{settings:?}");
            completions.clear();
            ring.turn(Duration::from_millis(100), &mut completions).unwrap();
            for completion in &completions {
                match completion.kind {
                    CompletionKind::Send => {
                        assert_eq!(completion.token, 7);
                        sent += completion.result.unwrap() as usize;
                    }
                    CompletionKind::Read => {
                        let n = completion.result.unwrap() as usize;
                        let filled = ring.slab().filled(chunk);
                        received.extend_from_slice(&filled[filled.len() - n..]);
                        if ring.slab().room(chunk) == 0 {
                            ring.slab_mut().release(chunk);
                            chunk = ring.slab_mut().take(Class::Rx).unwrap();
                        }
                        ring.read(&socket, chunk, 9).unwrap();
                    }
                    _ => panic!("nobody woke us"),
                }
            }
        }
        assert!(received == expected, "{settings:?}");
        assert_eq!(sent, expected.len());
        let counters = ring.counters();
        assert_eq!(counters.stale, 0);
        assert_eq!(counters.bytes_read as usize, expected.len());
        let zero_copy = ring.features().uses("sendmsg-zc");
        assert_eq!(counters.zc_sends > 0, zero_copy, "{settings:?}");
        assert!(zero_copy || settings.write == WriteMode::Sendmsg, "zero-copy sends are expected here");
        assert!(ring.features().features.iter().filter(|f| f.used).count() > 0);
        ring.shutdown(&socket);
        wait_for(&mut ring, CompletionKind::Read, 1);
        let begun = Instant::now();
        while ring.in_flight() > 1 {
            assert!(begun.elapsed() < Duration::from_secs(20), "notifications outstanding: {settings:?}");
            ring.turn(Duration::from_millis(10), &mut completions).unwrap();
        }
        for batch in &batches {
            release(&mut ring, &batch[0]);
        }
        assert_eq!(ring.slab().free_count(Class::Tx), LAYOUT.tx_chunks);
        echo.join().unwrap();
    }
}

#[test]
fn linked_sends_keep_their_order_through_tiny_buffers_to_a_late_reader() {
    for zero_copy in [false, true] {
        let mut ring = ring();
        let (ours, mut peer) = tcp_pair().unwrap();
        let socket = Rc::new(Socket::from(ours));
        socket.set_send_buffer(4096).unwrap();
        Socket::from(OwnedFd::from(peer.try_clone().unwrap())).set_receive_buffer(64 << 10).unwrap();
        if zero_copy {
            ring.force_zero_copy(ZeroCopy { bytes_min: 0, report_usage: true, fixed: false });
        }
        let mut expected = Vec::new();
        let batches: Vec<Vec<Segment>> = (0..8u8)
            .map(|i| {
                let (segment, bytes) = filled_chunk(&mut ring, i, LAYOUT.tx_chunk_bytes - usize::from(i));
                expected.extend_from_slice(&bytes);
                vec![segment]
            })
            .collect();
        let total = expected.len();
        let reader = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(50));
            let mut received = vec![0; total];
            peer.read_exact(&mut received).unwrap();
            received
        });
        send_all(&mut ring, &socket, &batches);
        assert!(reader.join().unwrap() == expected);
    }
}

#[test]
fn a_skipped_part_is_not_sent_again() {
    let mut ring = ring();
    let (socket, mut peer) = unix_pair();
    let (chunk, bytes) = filled_chunk(&mut ring, 1, 1000);
    let segments = [Segment::Heap(Bytes::from_static(b"header")), chunk, Segment::Heap(Bytes::from_static(b"trailer"))];
    let whole = [b"header", &bytes[..], b"trailer"].concat();
    for skip_bytes in [0, 1, 6, 7, 1005, 1006, 1012] {
        ring.send(&socket, &[Outgoing { segments: &segments, skip_bytes, token: 0 }]).unwrap();
        let sent = wait_for(&mut ring, CompletionKind::Send, 1)[0].result.unwrap() as usize;
        let mut received = vec![0; sent];
        peer.read_exact(&mut received).unwrap();
        assert_eq!(received, whole[skip_bytes..]);
    }
    let nothing = ring.send(&socket, &[Outgoing { segments: &segments, skip_bytes: 1013, token: 0 }]);
    assert!(matches!(nothing, Err(UringError::BatchBytes { bytes: 0, .. })));
}

#[test]
fn a_peer_that_goes_away_breaks_the_chain() {
    let mut ring = ring();
    let (socket, mut peer) = unix_pair();
    socket.set_send_buffer(8192).unwrap();
    let batches: Vec<Vec<Segment>> =
        (0..4u8).map(|i| vec![filled_chunk(&mut ring, i, LAYOUT.tx_chunk_bytes).0]).collect();
    let chain: Vec<Outgoing<'_>> =
        batches.iter().enumerate().map(|(i, segments)| Outgoing { segments, skip_bytes: 0, token: i as u64 }).collect();
    ring.send(&socket, &chain).unwrap();
    assert!(matches!(ring.send(&socket, &chain), Err(UringError::SendInFlight)));
    ring.turn(Duration::ZERO, &mut Vec::new()).unwrap();
    let mut some = [0; 3000];
    peer.read_exact(&mut some).unwrap();
    drop(peer);
    let all = wait_for(&mut ring, CompletionKind::Send, 4);
    assert_eq!(all.iter().map(|c| c.token).collect::<Vec<_>>(), [0, 1, 2, 3]);
    let whole = LAYOUT.tx_chunk_bytes as u32;
    assert!(all[0].result.map_or(true, |n| n < whole), "{all:?}");
    assert!(all[1..].iter().all(|c| c.result == Err(libc::ECANCELED)), "{all:?}");
    let counters = ring.counters();
    assert_eq!(counters.chain_breaks, 1);
    assert_eq!(counters.short_writes, u64::from(all[0].result.is_ok()));
    assert!(!socket.is_sending());
    for batch in &batches {
        release(&mut ring, &batch[0]);
    }
    assert_eq!(ring.slab().free_count(Class::Tx), LAYOUT.tx_chunks);
}

#[test]
fn operations_hold_chunks_until_they_complete() {
    let mut ring = ring();
    let (socket, mut peer) = unix_pair();
    socket.set_send_buffer(8192).unwrap();
    let (segment, bytes) = filled_chunk(&mut ring, 3, LAYOUT.tx_chunk_bytes);
    let batch = [segment];
    ring.send(&socket, &[Outgoing { segments: &batch, skip_bytes: 0, token: 0 }]).unwrap();
    let chunk = ring.slab_mut().take(Class::Rx).unwrap();
    ring.read(&socket, chunk, 1).unwrap();
    // Nobody but the operations refers to them any more.
    release(&mut ring, &batch[0]);
    ring.slab_mut().release(chunk);
    let sender = Rc::downgrade(&socket);
    drop(socket);
    ring.turn(Duration::ZERO, &mut Vec::new()).unwrap();
    assert_eq!(ring.slab().free_count(Class::Tx), LAYOUT.tx_chunks - 1);
    assert_eq!(ring.slab().free_count(Class::Rx), LAYOUT.rx_chunks - 1);
    assert!(sender.upgrade().is_some());
    let mut received = vec![0; bytes.len()];
    let reader = std::thread::spawn(move || {
        peer.read_exact(&mut received).unwrap();
        peer.write_all(b"x").unwrap();
        received
    });
    wait_for(&mut ring, CompletionKind::Read, 1);
    assert!(reader.join().unwrap() == bytes);
    assert_eq!(ring.slab().free_count(Class::Tx), LAYOUT.tx_chunks);
    assert_eq!(ring.slab().free_count(Class::Rx), LAYOUT.rx_chunks);
    assert!(sender.upgrade().is_none());
}

#[test]
fn one_read_a_chunk_and_a_socket() {
    let mut ring = ring();
    let (socket, mut peer) = unix_pair();
    let (other, _other_peer) = unix_pair();
    let chunk = ring.slab_mut().take(Class::Rx).unwrap();
    let second = ring.slab_mut().take(Class::Rx).unwrap();
    ring.slab_mut().append(chunk, b"head");
    ring.read_at_most(&socket, chunk, 3, 5).unwrap();
    assert_eq!(ring.slab().room(chunk), 0);
    assert!(ring.slab_mut().spare(chunk).is_empty());
    assert_eq!(ring.slab_mut().append(chunk, b"lost"), 0);
    assert!(matches!(ring.read(&other, chunk, 6), Err(UringError::ReadInFlight { what: "chunk" })));
    assert!(matches!(ring.read(&socket, second, 6), Err(UringError::ReadInFlight { what: "socket" })));
    peer.write_all(b"12345").unwrap();
    let all = wait_for(&mut ring, CompletionKind::Read, 1);
    assert_eq!(all, [Completion { token: 5, kind: CompletionKind::Read, result: Ok(3) }]);
    assert_eq!(ring.slab().filled(chunk), b"head123");
    let room = ring.slab().room(chunk);
    ring.slab_mut().advance(chunk, room);
    assert!(matches!(ring.read(&socket, chunk, 6), Err(UringError::ChunkFull { .. })));
    drop(peer);
    ring.read(&socket, second, 8).unwrap();
    assert_eq!(wait_for(&mut ring, CompletionKind::Read, 1)[0].result, Ok(2));
    ring.read(&socket, second, 8).unwrap();
    assert_eq!(wait_for(&mut ring, CompletionKind::Read, 1)[0].result, Ok(0));
}

#[test]
fn other_threads_wake_it_and_many_wakes_are_one() {
    let mut ring = ring();
    let waker = ring.waker();
    for _ in 0..3 {
        for _ in 0..100 {
            waker.wake();
        }
        assert_eq!(wait_for(&mut ring, CompletionKind::Wake, 1).len(), 1);
    }
    let mut out = Vec::new();
    ring.turn(Duration::from_millis(5), &mut out).unwrap();
    assert!(out.is_empty());
    let other = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(20));
        waker.wake();
        waker
    });
    wait_for(&mut ring, CompletionKind::Wake, 1);
    drop(ring);
    other.join().unwrap().wake();
}

#[test]
fn an_idle_turn_makes_no_system_call_and_a_waiting_one_does_one() {
    for taskrun in [TaskRun::Interrupt, TaskRun::Coop, TaskRun::Defer] {
        let mut ring = Ring::new(&RingSettings { taskrun, ..settings() }, LAYOUT).unwrap();
        let (socket, mut peer) = unix_pair();
        let chunk = ring.slab_mut().take(Class::Rx).unwrap();
        ring.read(&socket, chunk, 1).unwrap();
        let mut out = Vec::new();
        ring.turn(Duration::ZERO, &mut out).unwrap();
        let before = ring.counters().enters;
        for _ in 0..10 {
            ring.turn(Duration::ZERO, &mut out).unwrap();
        }
        assert_eq!(ring.counters().enters, before, "{taskrun:?}");
        let begun = Instant::now();
        ring.turn(Duration::from_millis(20), &mut out).unwrap();
        assert!(begun.elapsed() >= Duration::from_millis(15));
        assert_eq!(ring.counters().enters, before + 1);
        assert!(out.is_empty());
        // A worker that never waits still gets its completions.
        peer.write_all(b"x").unwrap();
        let begun = Instant::now();
        while out.is_empty() {
            assert!(begun.elapsed() < Duration::from_secs(10), "starved: {taskrun:?}");
            ring.turn(Duration::ZERO, &mut out).unwrap();
        }
    }
}

#[test]
fn a_ring_ends_with_operations_in_flight() {
    for settings in variants() {
        let mut ring = Ring::new(&settings, LAYOUT).unwrap();
        let (ours, mut peer) = tcp_pair().unwrap();
        let socket = Rc::new(Socket::from(ours));
        socket.set_send_buffer(8192).unwrap();
        let batches: Vec<Vec<Segment>> =
            (0..4u8).map(|i| vec![filled_chunk(&mut ring, i, LAYOUT.tx_chunk_bytes).0]).collect();
        let mut chain: Vec<Outgoing<'_>> = Vec::new();
        for segments in &batches {
            chain.push(Outgoing { segments, skip_bytes: 0, token: 0 });
        }
        ring.send(&socket, &chain).unwrap();
        let chunk = ring.slab_mut().take(Class::Rx).unwrap();
        ring.read(&socket, chunk, 0).unwrap();
        ring.turn(Duration::ZERO, &mut Vec::new()).unwrap();
        // This one is queued only.
        let (other, _other_peer) = unix_pair();
        let queued = ring.slab_mut().take(Class::Rx).unwrap();
        ring.read(&other, queued, 0).unwrap();
        let view = ring.slab().view(chunk);
        let begun = Instant::now();
        drop(ring);
        assert!(begun.elapsed() < Duration::from_millis(900), "{settings:?}");
        assert_eq!(Rc::strong_count(&socket), 1, "{settings:?}");
        assert!(!other.is_reading() && !socket.is_sending());
        drop(view);
        drop(socket);
        // Nothing keeps the connection: the peer sees its end (or a reset, as bytes were lost).
        peer.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        let mut rest = Vec::new();
        if let Err(e) = peer.read_to_end(&mut rest) {
            assert_eq!(e.kind(), std::io::ErrorKind::ConnectionReset, "{settings:?}");
        }
    }
}

#[test]
fn more_operations_than_the_queue_holds() {
    let mut ring = Ring::new(&RingSettings { sq_entries: 8, ..settings() }, LAYOUT).unwrap();
    let mut ends = Vec::new();
    for token in 0..LAYOUT.rx_chunks as u64 {
        let (socket, mut peer) = unix_pair();
        let chunk = ring.slab_mut().take(Class::Rx).unwrap();
        ring.read(&socket, chunk, token).unwrap();
        peer.write_all(b"x").unwrap();
        let batch = [Segment::Heap(Bytes::from_static(b"y"))];
        ring.send(&socket, &[Outgoing { segments: &batch, skip_bytes: 0, token }]).unwrap();
        ends.push((socket, peer));
    }
    wait_for(&mut ring, CompletionKind::Read, LAYOUT.rx_chunks);
    for (_, peer) in &mut ends {
        let mut one = [0];
        peer.read_exact(&mut one).unwrap();
    }
    let batch = [Segment::Heap(Bytes::from_static(b"y"))];
    let chain = vec![Outgoing { segments: &batch, skip_bytes: 0, token: 0 }; 9];
    assert!(matches!(ring.send(&ends[0].0, &chain), Err(UringError::ChainTooLong { .. })));
}

#[test]
fn wrong_batches_are_refused_before_anything_is_sent() {
    let mut ring = ring();
    let (socket, mut peer) = unix_pair();
    let (good, _) = filled_chunk(&mut ring, 0, 100);
    let Segment::Chunk { chunk, .. } = good.clone() else { panic!() };
    let good = [good];
    let outside = [Segment::Chunk { chunk, start: 50, len: 51 }];
    let overflow = [Segment::Chunk { chunk, start: 50, len: u32::MAX }];
    let many: Vec<Segment> = (0..1025).map(|_| Segment::Heap(Bytes::from(vec![1]))).collect();
    let count = |bad| {
        let good = Outgoing { segments: &good, skip_bytes: 0, token: 0 };
        [good, Outgoing { segments: bad, skip_bytes: 0, token: 0 }]
    };
    assert!(matches!(ring.send(&socket, &count(&outside)), Err(UringError::SegmentOutside { .. })));
    assert!(matches!(ring.send(&socket, &count(&overflow)), Err(UringError::SegmentOutside { .. })));
    assert!(matches!(ring.send(&socket, &count(&many)), Err(UringError::TooManySegments { .. })));
    assert!(!socket.is_sending());
    let mut out = Vec::new();
    ring.turn(Duration::from_millis(5), &mut out).unwrap();
    assert!(out.is_empty());
    peer.set_nonblocking(true).unwrap();
    assert!(peer.read(&mut [0]).is_err());
    ring.slab_mut().release(chunk);
    assert_eq!(ring.slab().free_count(Class::Tx), LAYOUT.tx_chunks);
    // Exactly as many as the kernel takes.
    peer.set_nonblocking(false).unwrap();
    ring.send(&socket, &[Outgoing { segments: &many[1..], skip_bytes: 0, token: 0 }]).unwrap();
    assert_eq!(wait_for(&mut ring, CompletionKind::Send, 1)[0].result, Ok(1024));
}

#[test]
fn registering_fixed_zero_copy_refers_to_the_arena() {
    let Ok(support) = super::probe::zero_copy_support() else { return };
    if !support.fixed {
        return;
    }
    let mut ring = ring();
    ring.force_zero_copy(ZeroCopy { bytes_min: 0, report_usage: support.report_usage, fixed: true });
    let (ours, mut peer) = tcp_pair().unwrap();
    let socket = Rc::new(Socket::from(ours));
    let (first, first_bytes) = filled_chunk(&mut ring, 1, 5000);
    let (second, second_bytes) = filled_chunk(&mut ring, 2, 7000);
    send_all(&mut ring, &socket, &[vec![first.clone(), second.clone()], vec![second, first]]);
    let mut received = vec![0; 24_000];
    peer.read_exact(&mut received).unwrap();
    assert!(received == [&first_bytes[..], &second_bytes, &second_bytes, &first_bytes].concat());
    assert_eq!(ring.counters().zc_sends, 2);
}

/// Registered memory counts against RLIMIT_MEMLOCK of an unprivileged user: this test becomes one in a child process.
#[test]
fn too_little_locked_memory_is_named() {
    const CHILD: &str = "DF2REDIS_TEST_MEMLOCK_CHILD";
    if std::env::var_os(CHILD).is_none() {
        let mut child = std::process::Command::new(std::env::current_exe().unwrap());
        child.args(["--exact", "uring::ring_tests::too_little_locked_memory_is_named", "--nocapture"]);
        assert!(child.env(CHILD, "1").status().unwrap().success());
        return;
    }
    let none = libc::rlimit { rlim_cur: 1 << 20, rlim_max: 1 << 20 };
    // SAFETY: plain system calls on this test's own process; the limit is valid.
    unsafe {
        libc::setrlimit(libc::RLIMIT_MEMLOCK, &none);
        if libc::geteuid() == 0 && libc::setresuid(65_534, 65_534, 65_534) != 0 {
            println!("skipped: cannot become an unprivileged user");
            return;
        }
    }
    if cpu::memlock().exempt {
        println!("skipped: CAP_IPC_LOCK");
        return;
    }
    let layout = SlabLayout { rx_chunk_bytes: 64 << 10, rx_chunks: 64, tx_chunk_bytes: 0, tx_chunks: 0 };
    let error = Ring::new(&settings(), layout).err().expect("4 MiB are more than 1 MiB");
    assert!(
        matches!(error, UringError::MemoryLocked { needed_bytes: 4_194_304, limit_bytes: Some(1_048_576) }),
        "{error}"
    );
    Ring::new(&RingSettings { registered_buffers: false, ..settings() }, layout).expect("unregistered is not limited");
}
