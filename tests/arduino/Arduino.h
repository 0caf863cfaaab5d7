// The few words of the Arduino library that the sketch of docs/outputs.md uses, on stdin and stdout of a process.
// The pin goes to stderr. micros() wraps after 71 minutes on the board; here it starts a second before that.
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <time.h>
#include <unistd.h>
typedef uint8_t byte;
enum { LOW, HIGH, OUTPUT };
static inline uint32_t micros() {
  static timespec start;
  timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  if (!start.tv_sec) start = now;
  int64_t us = (now.tv_sec - start.tv_sec) * 1000000LL + (now.tv_nsec - start.tv_nsec) / 1000;
  return (uint32_t)(us + 4293967296LL);
}
static inline void pinMode(int, int) {}
static inline void digitalWrite(int pin, int level) { dprintf(2, "%d %d\n", pin, level); }
struct Port {
  void begin(long) {}
  int available() {
    pollfd in = {0, POLLIN, 0};
    return poll(&in, 1, 1) > 0;
  }
  int read() {
    char c;
    if (::read(0, &c, 1) != 1) _exit(0);
    return c;
  }
  void print(const char *text) { dprintf(1, "%s", text); }
  void print(char c) { dprintf(1, "%c", c); }
  void print(uint32_t n) { dprintf(1, "%u", n); }
  void println(const char *text) { dprintf(1, "%s\r\n", text); }
  void println(uint32_t n) { dprintf(1, "%u\r\n", n); }
} Serial;
