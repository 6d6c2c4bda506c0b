/* CRC-32C (Castagnoli), by the processor's own instruction where it has one, else by tables.

One instruction takes three cycles and a new one can begin in each, so three pieces of the bytes are summed
side by side; tables move a sum past the bytes that follow it. The sums are those of google_crc32c, which
tests/test_usual_records.py compares.

Source of the polynomial: RFC 3720, appendix B.4. */

#ifndef NEXTVLAD_CRC32C_H
#define NEXTVLAD_CRC32C_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define CRC_POLYNOMIAL 0x82F63B78u /* bits reversed */
#define CRC_LONG 2048u             /* bytes of a piece, for large data and for the rest of it */
#define CRC_SHORT 256u

#if defined(__x86_64__)
#include <nmmintrin.h>
#define CRC_BY_INSTRUCTION __attribute__((target("sse4.2")))
#define CRC_OF_WORD(crc, word) _mm_crc32_u64(crc, word)
#define CRC_OF_BYTE(crc, byte) _mm_crc32_u8((uint32_t)(crc), byte)
#define CRC_HAS_INSTRUCTION() __builtin_cpu_supports("sse4.2")
#elif defined(__ARM_FEATURE_CRC32)
#include <arm_acle.h>
#define CRC_BY_INSTRUCTION
#define CRC_OF_WORD(crc, word) __crc32cd((uint32_t)(crc), word)
#define CRC_OF_BYTE(crc, byte) __crc32cb((uint32_t)(crc), byte)
#define CRC_HAS_INSTRUCTION() 1
#endif

static uint32_t crc_table[8][256];      /* [n][b]: byte b and n zeros behind it */
static uint32_t crc_past_long[4][256];  /* [n][b]: byte n of a sum, moved past CRC_LONG zeros */
static uint32_t crc_past_short[4][256];

static uint32_t crc_by_table(uint32_t crc, const uint8_t *data, size_t size)
{
    while (size >= 8) {
        uint64_t word;
        memcpy(&word, data, 8);
        word ^= crc;
        crc = 0;
        for (int byte = 0; byte < 8; byte++)
            crc ^= crc_table[7 - byte][word >> 8 * byte & 0xFF];
        data += 8;
        size -= 8;
    }
    while (size--)
        crc = crc_table[0][(crc ^ *data++) & 0xFF] ^ crc >> 8;
    return crc;
}

/* A sum is linear in its bits: what becomes of each of the 32 says what becomes of all. */
static void crc_make_past(uint32_t past[4][256], size_t zeros)
{
    for (int bit = 0; bit < 32; bit++) {
        uint32_t crc = 1u << bit;
        for (size_t done = 0; done < zeros; done++)
            crc = crc_table[0][crc & 0xFF] ^ crc >> 8;
        for (int byte = 0; byte < 256; byte++)
            if (byte >> bit % 8 & 1)
                past[bit / 8][byte] ^= crc;
    }
}

/* Once, before anything else here. */
static void crc_prepare(void)
{
    for (uint32_t byte = 0; byte < 256; byte++) {
        uint32_t crc = byte;
        for (int bit = 0; bit < 8; bit++)
            crc = crc >> 1 ^ (crc & 1 ? CRC_POLYNOMIAL : 0);
        crc_table[0][byte] = crc;
    }
    for (int zeros = 1; zeros < 8; zeros++)
        for (int byte = 0; byte < 256; byte++) {
            uint32_t before = crc_table[zeros - 1][byte];
            crc_table[zeros][byte] = crc_table[0][before & 0xFF] ^ before >> 8;
        }
    memset(crc_past_long, 0, sizeof crc_past_long);
    memset(crc_past_short, 0, sizeof crc_past_short);
    crc_make_past(crc_past_long, CRC_LONG);
    crc_make_past(crc_past_short, CRC_SHORT);
}

#ifdef CRC_BY_INSTRUCTION

static uint32_t crc_past(uint32_t past[4][256], uint32_t crc)
{
    return past[0][crc & 0xFF] ^ past[1][crc >> 8 & 0xFF] ^ past[2][crc >> 16 & 0xFF] ^ past[3][crc >> 24];
}

/* As many whole triples of pieces as there are; moves *data and *size past them. */
CRC_BY_INSTRUCTION
static uint32_t crc_of_triples(uint32_t crc, const uint8_t **data, size_t *size, size_t piece,
                               uint32_t past[4][256])
{
    while (*size >= 3 * piece) {
        const uint8_t *first = *data, *second = first + piece, *third = second + piece;
        uint64_t a = crc, b = 0, c = 0;
        for (size_t at = 0; at < piece; at += 8) {
            uint64_t x, y, z;
            memcpy(&x, first + at, 8);
            memcpy(&y, second + at, 8);
            memcpy(&z, third + at, 8);
            a = CRC_OF_WORD(a, x);
            b = CRC_OF_WORD(b, y);
            c = CRC_OF_WORD(c, z);
        }
        crc = crc_past(past, crc_past(past, (uint32_t)a) ^ (uint32_t)b) ^ (uint32_t)c;
        *data += 3 * piece;
        *size -= 3 * piece;
    }
    return crc;
}

CRC_BY_INSTRUCTION
static uint32_t crc_by_instruction(uint32_t crc, const uint8_t *data, size_t size)
{
    crc = crc_of_triples(crc, &data, &size, CRC_LONG, crc_past_long);
    crc = crc_of_triples(crc, &data, &size, CRC_SHORT, crc_past_short);
    uint64_t wide = crc;
    for (; size >= 8; data += 8, size -= 8) {
        uint64_t word;
        memcpy(&word, data, 8);
        wide = CRC_OF_WORD(wide, word);
    }
    crc = (uint32_t)wide;
    while (size--)
        crc = CRC_OF_BYTE(crc, *data++);
    return crc;
}

#endif

static uint32_t crc32c(const uint8_t *data, size_t size)
{
#ifdef CRC_BY_INSTRUCTION
    if (CRC_HAS_INSTRUCTION())
        return ~crc_by_instruction(~0u, data, size);
#endif
    return ~crc_by_table(~0u, data, size);
}

#endif
