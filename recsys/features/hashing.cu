// XXH64 (Yann Collet, the xxHash specification) of 64-bit words and of text, one value a row, for CPU and GPU. Both are
// little-endian. A word is hashed as its eight bytes; text is read in whole aligned words that shifts join, since a GPU
// refuses a load that is not aligned and loses seven eighths of the bandwidth to loads of single bytes.

constexpr u64 P1 = 0x9E3779B185EBCA87ULL, P2 = 0xC2B2AE3D27D4EB4FULL, P3 = 0x165667B19E3779F9ULL,
              P4 = 0x85EBCA77C2B2AE63ULL, P5 = 0x27D4EB2F165667C5ULL;

INNER u64 rotate(u64 x, int bits) { return (x << bits) | (x >> (64 - bits)); }

INNER u64 stir(u64 lane, u64 word) { return rotate(lane + word * P2, 31) * P1; }

INNER u64 merge(u64 h, u64 lane) { return (h ^ stir(0, lane)) * P1 + P4; }

INNER u64 add_word(u64 h, u64 word) { return rotate(h ^ stir(0, word), 27) * P1 + P4; }

INNER u64 avalanche(u64 h) {
    h = (h ^ (h >> 33)) * P2;
    h = (h ^ (h >> 29)) * P3;
    return h ^ (h >> 32);
}

INNER u64 hash_word(u64 word, u64 seed) { return avalanche(add_word(seed + P5 + 8, word)); }

// Bytes from anywhere on. `word` holds those up to the next boundary at its upper end, `next` is what follows it.
struct Reader {
    const u64 *next;
    u64 word;
    int shift;
};

// The next eight bytes. It reads as far as the aligned word that holds the last of them, and one beyond where aligned.
INNER u64 take(Reader *r) {
    u64 after = *r->next++, bytes = (r->word >> r->shift) | ((after << 1) << (63 - r->shift));
    r->word = after;
    return bytes;
}

INNER u64 hash_bytes(const u64 *words, u64 start, u64 size, u64 seed) {
    const u64 *first = words + (start >> 3);
    Reader text = {first + 1, *first, (int)(start & 7) * 8};
    u64 h = seed + P5, left = size;
    if (left >= 32) {
        u64 a = seed + P1 + P2, b = seed + P2, c = seed, d = seed - P1;
        for (; left >= 32; left -= 32) {
            a = stir(a, take(&text));
            b = stir(b, take(&text));
            c = stir(c, take(&text));
            d = stir(d, take(&text));
        }
        h = rotate(a, 1) + rotate(b, 7) + rotate(c, 12) + rotate(d, 18);
        h = merge(merge(merge(merge(h, a), b), c), d);
    }
    h += size;
    for (; left >= 8; left -= 8) h = add_word(h, take(&text));
    if (left) {
        u64 tail = take(&text);
        if (left & 4) {
            h = rotate(h ^ ((tail & 0xFFFFFFFFULL) * P1), 23) * P2 + P3;
            tail >>= 32;
        }
        for (left &= 3; left; left--, tail >>= 8) h = rotate(h ^ ((tail & 0xFF) * P5), 11) * P1;
    }
    return avalanche(h);
}

ENTRY hash_words(i64 rows, const u64 *word, u64 seed, u64 *hash) {
    EACH(i, rows) hash[i] = hash_word(word[i], seed);
}

ENTRY hash_words_seeded(i64 rows, const u64 *word, const u64 *seed, u64 *hash) {
    EACH(i, rows) hash[i] = hash_word(word[i], seed[i]);
}

// Row i is the bytes start[i] .. start[i + 1] of `words`, which go on for eight bytes after the last, rounded up.
ENTRY hash_text(i64 rows, const i64 *start, const u64 *words, u64 seed, u64 *hash) {
    EACH(i, rows) hash[i] = hash_bytes(words, start[i], start[i + 1] - start[i], seed);
}
