/* Sends sound to `edge-asr serve --socket PATH` and prints what is heard, as JSON Lines.
 *
 *   gcc -std=c99 -Wall -Wextra -o client examples/serve/client.c
 *   edge-asr serve --socket asr.sock &
 *   ./client asr.sock speech.wav                            at the pace at which it was spoken
 *   ./client -f asr.sock speech.wav                         as fast as the server takes it
 *   arecord -q -t raw -f S16_LE -r 16000 | ./client asr.sock
 *   ./client -o '"grammar": "go\nstop", "partials": false' asr.sock < speech.raw
 *
 * Input is a WAV file (16-bit or float samples), or raw 16-bit samples at 16 kHz (-r RATE for another rate).
 * The protocol is one line of options, then the samples; the shut-down writing half says that there are no more.
 * Exit status: 0 if the server ended with "reason": "end", 1 if not, 2 for wrong arguments.
 */
#define _POSIX_C_SOURCE 200809L

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

enum { MAX_RATE = 768000, MAX_CHANNELS = 64 };

struct format {
    uint32_t rate, channels;
    const char *name;     /* "s16le" or "f32le" */
    uint32_t frame_bytes; /* one sample of every channel */
    uint64_t n_bytes;     /* of sound; UINT64_MAX if it goes to the end of the input */
};

static void fail(const char *what, const char *detail)
{
    fprintf(stderr, "client: %s: %s\n", what, detail);
    exit(1);
}

static double now_s(void)
{
    struct timespec t;
    return clock_gettime(CLOCK_MONOTONIC, &t) == 0 ? (double)t.tv_sec + (double)t.tv_nsec / 1e9 : 0;
}

/* Reads n bytes, or fewer at the end of the input. */
static size_t read_fully(int in, unsigned char *to, size_t n)
{
    size_t done = 0;
    for (ssize_t got = 1; got > 0 && done < n; done += (size_t)got)
        if ((got = read(in, to + done, n - done)) < 0)
            fail("the sound cannot be read", strerror(errno));
    return done;
}

static uint32_t u16(const unsigned char *b) { return b[0] | (uint32_t)b[1] << 8; }
static uint32_t u32(const unsigned char *b) { return u16(b) | u16(b + 2) << 16; }

/* Reads the header of a WAV file up to its samples, of which the first 12 bytes have been read. */
static void read_wav_header(int in, struct format *format)
{
    unsigned char chunk[8], fmt[40] = {0};
    for (;;) {
        if (read_fully(in, chunk, 8) < 8)
            fail("the WAV file", "it has no sound");
        uint32_t size = u32(chunk + 4);
        if (memcmp(chunk, "data", 4) == 0) {
            /* A program that writes to a pipe does not know the size, and gives 0 or the largest. */
            format->n_bytes = size == 0 || size >= 0x7ffff000u ? UINT64_MAX : size;
            break;
        }
        size += size & 1; /* chunks begin at even places */
        if (memcmp(chunk, "fmt ", 4) == 0 && size >= 16 && size <= sizeof fmt)
            size -= (uint32_t)read_fully(in, fmt, size);
        while (size > 0 && read_fully(in, chunk, 1) == 1) /* another chunk is skipped */
            size--;
    }
    /* WAVE_FORMAT_EXTENSIBLE has the kind of samples further behind: 1 is PCM, 3 is float. */
    uint32_t kind = u16(fmt) == 0xfffe ? u16(fmt + 24) : u16(fmt), bits = u16(fmt + 14);
    format->channels = u16(fmt + 2);
    format->rate = u32(fmt + 4);
    if (!(kind == 1 && bits == 16) && !(kind == 3 && bits == 32))
        fail("the WAV file", "its samples are neither 16-bit nor 32-bit float");
    if (format->channels - 1 >= MAX_CHANNELS || format->rate - 1 >= MAX_RATE)
        fail("the WAV file", "it has no rate or channel, or too many");
    format->name = kind == 1 ? "s16le" : "f32le";
    format->frame_bytes = format->channels * bits / 8;
}

static int connect_to(const char *path)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    int sock = socket(AF_UNIX, SOCK_STREAM, 0);
    if (strlen(path) >= sizeof address.sun_path)
        fail(path, "the path of a socket cannot be that long");
    strcpy(address.sun_path, path);
    if (sock < 0 || connect(sock, (struct sockaddr *)&address, sizeof address) != 0)
        fail(path, strerror(errno));
    return sock;
}

int main(int argc, char **argv)
{
    struct format format = {16000, 1, "s16le", 2, UINT64_MAX};
    const char *options = "";
    int at_once = 0, in = STDIN_FILENO, option;
    while ((option = getopt(argc, argv, "fo:r:")) != -1) {
        switch (option) {
        case 'f': at_once = 1; break;
        case 'o': options = optarg; break;
        case 'r': format.rate = (uint32_t)strtoul(optarg, NULL, 10); break;
        default: optind = argc; /* the usage follows */
        }
    }
    if (argc - optind < 1 || argc - optind > 2 || format.rate - 1 >= MAX_RATE) {
        fprintf(stderr, "usage: client [-f] [-r RATE] [-o OPTIONS] SOCKET [FILE]\n");
        return 2;
    }
    if (argc - optind == 2 && (in = open(argv[optind + 1], O_RDONLY)) < 0)
        fail(argv[optind + 1], strerror(errno));

    unsigned char head[12];
    size_t n_head = read_fully(in, head, sizeof head), n_sent = 0;
    int is_wav = n_head == sizeof head && memcmp(head, "RIFF", 4) == 0 && memcmp(head + 8, "WAVE", 4) == 0;
    if (is_wav)
        read_wav_header(in, &format);

    /* What is to be sent: first the options and the raw samples that were read above, then block by block. */
    double bytes_per_s = (double)format.rate * format.frame_bytes;
    size_t n_block = (format.rate / 10 + 1) * format.frame_bytes, n_text = strlen(options) + 128;
    unsigned char *block = malloc(n_block + n_text + sizeof head);
    if (block == NULL)
        fail("a block of sound", "there is no memory for it");
    size_t n_filled = (size_t)snprintf((char *)block, n_text,
        "{\"sample_rate\": %lu, \"channels\": %lu, \"format\": \"%s\"%s%s}\n", (unsigned long)format.rate,
        (unsigned long)format.channels, format.name, *options ? ", " : "", options);
    memcpy(block + n_filled, head, n_head);
    n_filled += is_wav ? 0 : n_head;

    int sock = connect_to(argv[optind]), is_writing = 1, ends_well = 0;
    static const char good_end[] = "{\"type\": \"end\", \"reason\": \"end\"";
    char events[4096], line[sizeof good_end] = ""; /* no more of the last line is needed */
    size_t n_line = 0;
    double due_s = now_s();
    fcntl(sock, F_SETFL, O_NONBLOCK);
    for (;;) {
        int is_full = n_sent < n_filled, wait_ms = is_full ? 0 : (int)((due_s - now_s()) * 1000);
        struct pollfd watched[2] = {{sock, POLLIN, 0}, {-1, POLLIN, 0}};
        if (is_writing && is_full)
            watched[0].events |= POLLOUT;
        else if (is_writing && (at_once || wait_ms <= 0))
            watched[1].fd = in;
        int is_waiting = is_writing && !is_full && watched[1].fd < 0; /* for the time of the next block */
        if (poll(watched, 2, is_waiting ? wait_ms + 1 : -1) < 0 && errno != EINTR)
            fail("poll", strerror(errno));

        if (watched[0].revents & (POLLIN | POLLHUP | POLLERR)) {
            ssize_t n = read(sock, events, sizeof events);
            if (n == 0 || (n < 0 && errno != EAGAIN && errno != EINTR))
                break; /* the server has said all */
            for (ssize_t i = 0; i < n; i++) {
                if (n_line < sizeof line)
                    line[n_line++] = events[i];
                if (events[i] == '\n') {
                    ends_well = strncmp(line, good_end, sizeof good_end - 1) == 0;
                    n_line = 0;
                }
            }
            fwrite(events, 1, n > 0 ? (size_t)n : 0, stdout);
            fflush(stdout);
        }
        if (watched[0].revents & POLLOUT) {
            ssize_t n = send(sock, block + n_sent, n_filled - n_sent, MSG_NOSIGNAL);
            if (n > 0)
                n_sent += (size_t)n;
            else if (n < 0 && errno != EAGAIN && errno != EINTR)
                is_writing = 0; /* it takes no more; why, can still be read */
        }
        if (watched[1].revents != 0) {
            size_t n = format.n_bytes < n_block ? (size_t)format.n_bytes : n_block;
            ssize_t got = n > 0 ? read(in, block, n) : 0;
            n_filled = got > 0 ? (size_t)got : 0, n_sent = 0;
            if (format.n_bytes != UINT64_MAX)
                format.n_bytes -= n_filled;
            due_s += (double)n_filled / bytes_per_s;
            if (got <= 0) {
                shutdown(sock, SHUT_WR); /* no more sound; the last events follow */
                is_writing = 0;
            }
        }
    }
    free(block);
    return ends_well ? 0 : 1;
}
