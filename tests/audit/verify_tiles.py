#!/usr/bin/env python3
"""Checks an exported log without any of the code that wrote it: Python's standard library and the specifications only.

    verify_tiles.py DIR --key VKEY... [--since CHECKPOINT]... [--event FILE]... [--proof FILE]...

DIR is what `chancery audit export` left: checkpoint, tile/<level>/..., tile/entries/...
VKEY is the log's verifier key, or a file with it; several for a log that signs with another key since a restore.
--since: a checkpoint that was kept; the log must begin with the events that it covers. --event: the exact bytes of an
event, which must be in the log at the place that it names. --proof: a proof that somebody was handed.
Exit status: 0 everything holds, 1 something does not, 2 it could not be checked. Written from c2sp.org/signed-note,
tlog-checkpoint, tlog-tiles and tlog-proof, RFC 6962 section 2.1, RFC 9162 section 2.1.3.2 and RFC 8032 section 5.1.
"""
import argparse, base64, hashlib, json, os, sys

class No(Exception): """What was to be shown is not so."""

def must(holds, what):
    if not holds:
        raise No(what)

def read(name):
    with open(name, "rb") as file:
        return file.read()

# ---- Ed25519 verification, RFC 8032 sections 5.1.3 and 5.1.7, in extended coordinates
P, ORDER = 2**255 - 19, 2**252 + 27742317777372353535851937790883648493
D, ROOT = -121665 * pow(121666, P - 2, P) % P, pow(2, (P - 1) // 4, P)

def add(p, q):
    a, b = (p[1] - p[0]) * (q[1] - q[0]) % P, (p[1] + p[0]) * (q[1] + q[0]) % P
    c, d = 2 * p[3] * q[3] * D % P, 2 * p[2] * q[2] % P
    e, f, g, h = b - a, d - c, d + c, b + a
    return e * f % P, g * h % P, f * g % P, e * h % P

def times(n, p):
    q = (0, 1, 1, 0)
    while n:
        q = add(q, p) if n & 1 else q
        p, n = add(p, p), n >> 1
    return q

def point(octets):
    y = int.from_bytes(octets, "little")
    sign, y = y >> 255, y & (1 << 255) - 1
    u, v = (y * y - 1) % P, (D * y * y + 1) % P
    x = u * pow(v, 3, P) * pow(u * pow(v, 7, P), (P - 5) // 8, P) % P
    x = x if v * x * x % P == u else x * ROOT % P
    must(y < P and v * x * x % P == u and (x or not sign), "a point of the signature is not on the curve")
    x = x if x & 1 == sign else P - x
    return x, y, 1, x * y % P

def ed25519(public, message, signature):
    a, r, s = point(public), point(signature[:32]), int.from_bytes(signature[32:], "little")
    k = int.from_bytes(hashlib.sha512(signature[:32] + public + message).digest(), "little") % ORDER
    base = point((4 * pow(5, P - 2, P) % P).to_bytes(32, "little"))
    p, q = times(s, base), add(r, times(k, a))
    return len(signature) == 64 and s < ORDER and all((p[i] * q[2] - q[i] * p[2]) % P == 0 for i in (0, 1))

# ---- notes and checkpoints
def b64(text):
    octets = base64.b64decode(text, validate=True)
    must(base64.b64encode(octets).decode() == text, f"not the one base64 form: {text[:60]!r}")
    return octets

def verifier(text):
    name, key_id, key = (read(text).decode().strip() if os.path.exists(text) else text).split("+", 2)
    key = b64(key)
    must(key[:1] == b"\x01" and len(key) == 33, "the key is none of Ed25519")
    must(hashlib.sha256(name.encode() + b"\n" + key).digest()[:4].hex() == key_id, "the key has another id than it says")
    return name, bytes.fromhex(key_id), key[1:]

def checkpoint(note, keys):
    """(size, root) that one of the keys has signed."""
    text, _, lines = note.rpartition("\n\n")
    text += "\n"
    for line in lines.removesuffix("\n").split("\n"):
        dash, name, signature = line.split(" ")
        signature = b64(signature)
        for key_name, key_id, public in keys:
            if (dash, name, signature[:4]) == ("\u2014", key_name, key_id):
                must(ed25519(public, text.encode(), signature[4:]), "the checkpoint's signature is wrong")
                origin, size, root = text.split("\n")[:3]
                must(origin == key_name, "the checkpoint is of another log")
                must(str(int(size)) == size and int(size) >= 0, "the checkpoint's size is no number")
                return int(size), b64(root)
    raise No("none of the given keys has signed the checkpoint")

# ---- the tree
def leaf(octets): return hashlib.sha256(b"\x00" + octets).digest()
def node(left, right): return hashlib.sha256(b"\x01" + left + right).digest()

def mth(hashes):
    """The root over neighbouring hashes: pairs, level by level; one that has no sibling goes up as it is."""
    while len(hashes) > 1:
        hashes = [node(a, b) for a, b in zip(hashes[::2], hashes[1::2])] + hashes[len(hashes) & ~1:]
    return hashes[0] if hashes else hashlib.sha256().digest()

def included(hash, index, size, proof, root):
    """Whether the path leads from a leaf to the root: RFC 9162 section 2.1.3.2."""
    at, last = index, size - 1
    for sibling in proof:
        must(last > 0, "the path is too long")
        right = at & 1 or at == last
        hash = node(sibling, hash) if right else node(hash, sibling)
        while right and not at & 1 and at:
            at, last = at >> 1, last >> 1
        at, last = at >> 1, last >> 1
    return 0 <= index < size and last == 0 and hash == root

# ---- the files
def tile(folder, level, index, width):
    name, rest = f"{index % 1000:03}", index // 1000
    while rest:
        name, rest = f"x{rest % 1000:03}/{name}", rest // 1000
    full = os.path.join(folder, "tile", str(level), name)
    part = f"{full}.p/{width}"  # may be gone once the tile is full
    return read(part if width < 256 and os.path.exists(part) else full)

def tiles(folder, size):
    """The leaf hashes as the tiles have them, each level compared with the one below it."""
    leaves, below = [], []
    for level in range(8):
        hashes, count = b"", size >> 8 * level
        for start in range(0, count, 256):
            width = min(256, count - start)
            octets = tile(folder, level, start // 256, width)[:32 * width]
            must(len(octets) == 32 * width, f"tile {start // 256} of level {level} is cut")
            hashes += octets
        hashes = [hashes[at:at + 32] for at in range(0, len(hashes), 32)]
        for at, hash in enumerate(hashes if level else []):
            must(hash == mth(below[256 * at:256 * (at + 1)]), f"hash {at} of level {level} is another")
        leaves, below = leaves if level else hashes, hashes
    return leaves

def events(folder, size):
    """The leaf hashes of the events themselves, each compared with what it says of its place."""
    leaves, projects = [], {}
    for start in range(0, size, 256):
        width = min(256, size - start)
        bundle, at = tile(folder, "entries", start // 256, width), 0
        for number in range(start + 1, start + width + 1):
            length = int.from_bytes(bundle[at:at + 2], "big")
            entry, at = bundle[at + 2:at + 2 + length], at + 2 + length
            must(0 < len(entry) == length, f"bundle {start // 256} ends before entry {number}")
            event, before = json.loads(entry), leaves[-1].hex() if leaves else "0" * 64
            projects[event["project"]] = place = projects.get(event["project"], 0) + 1
            must(event["sequence"] == str(number), f"entry {number} says that it is event {event['sequence']}")
            must(event["prevhash"] == before, f"event {number} does not name the one before it")
            must(event["projectseq"] == str(place), f"event {number}: a gap in its project")
            leaves.append(leaf(entry))
    return leaves

def proven(text, keys):
    head, _, note = text.partition("\n\n")
    first, extra, index, *hashes = head.split("\n")
    must(first == "c2sp.org/tlog-proof@v1" and extra[:6] == "extra " and index[:6] == "index ", "it is no proof with its event")
    size, root = checkpoint(note, keys)
    event, index = b64(extra[6:]), int(index[6:])
    must(included(leaf(event), index, size, [b64(h) for h in hashes], root), "the proof does not lead to the signed root")
    must(json.loads(event)["sequence"] == str(index + 1), "the event names another place")
    return index + 1

def audit(words, keys, note, kept, bytes_of, proofs):
    size, root = checkpoint(note.decode(), keys)
    leaves = events(words.folder, size)
    must(mth(leaves) == root, "the entries do not give the signed root")
    must(tiles(words.folder, size) == leaves, "the tiles have other hashes than the entries")
    print(f"{size} events have the signed root {root.hex()}, and so have the tiles")
    for name, note in kept:
        old, old_root = checkpoint(note.decode(), keys)
        must(old <= size, f"{name} covers {old} events and the log has {size}: it was cut off")
        must(mth(leaves[:old]) == old_root, f"{name}: its {old} events were others: the log was rewritten")
        print(f"{name}: the log has only grown since, by {size - old} events")
    for name, event in bytes_of:
        number = int(json.loads(event)["sequence"])
        must(1 <= number <= size and leaves[number - 1] == leaf(event), f"{name}: it is not in the log at its place")
        print(f"{name}: event {number} is in the log")
    for name, proof in proofs:
        print(f"{name}: event {proven(proof.decode(), keys)} is proven")

def main():
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    words.add_argument("folder")
    for word in ("--key", "--since", "--event", "--proof"):
        words.add_argument(word, action="append", default=[], required=word == "--key")
    words = words.parse_args()
    try:
        files = [[(name, read(name)) for name in names] for names in (words.since, words.event, words.proof)]
        keys, note = [verifier(key) for key in words.key], read(os.path.join(words.folder, "checkpoint"))
    except (OSError, ValueError, No) as error:
        return print(f"could not be checked: {error}", file=sys.stderr) or 2
    try:
        audit(words, keys, note, *files)
    except (No, OSError, ValueError, KeyError, TypeError) as error:
        print(f"no: {error}", file=sys.stderr)
        return 1
    return 0

if __name__ == "__main__":
    sys.exit(main())
