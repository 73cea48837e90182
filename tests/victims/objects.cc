// What else can hold on to a tree: sockets, FIFOs, watches, rings, epoll.
// Usage: objects DIR CASE

#include <linux/aio_abi.h>
#include <linux/io_uring.h>
#include <sys/epoll.h>
#include <sys/fanotify.h>
#include <sys/inotify.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/un.h>

#include "victim.h"

namespace {

using victim::Expect;
using victim::MakeFile;
using victim::Open;
using victim::UntilTold;

std::string dir;

sockaddr_un Address(const std::string& name) {
  sockaddr_un address = {};
  address.sun_family = AF_UNIX;
  // The directory's path may be longer than an address can be.
  Expect(name.size() < sizeof address.sun_path, "a short name");
  memcpy(address.sun_path, name.c_str(), name.size() + 1);
  return address;
}

// Connecting by the path goes on working.
[[noreturn]] void Listener() {
  Expect(chdir(dir.c_str()) == 0, "chdir");
  unlink("socket");
  sockaddr_un address = Address("socket");
  int fd = socket(AF_UNIX, SOCK_STREAM, 0);
  if (bind(fd, reinterpret_cast<sockaddr*>(&address), sizeof address) != 0 ||
      listen(fd, 8) != 0)
    victim::Cannot("bind a UNIX socket there");
  victim::Ready();
  victim::Ok("%ld", UntilTold([&] {
    int client = socket(AF_UNIX, SOCK_STREAM, 0);
    Expect(connect(client, reinterpret_cast<sockaddr*>(&address),
                   sizeof address) == 0,
           "connect by path");
    int accepted = accept(fd, nullptr, nullptr);
    Expect(accepted >= 0, "accept");
    close(client);
    close(accepted);
  }));
}

[[noreturn]] void Datagrams() {
  Expect(chdir(dir.c_str()) == 0, "chdir");
  unlink("socket");
  sockaddr_un address = Address("socket");
  int fd = socket(AF_UNIX, SOCK_DGRAM, 0), client = socket(AF_UNIX, SOCK_DGRAM, 0);
  if (bind(fd, reinterpret_cast<sockaddr*>(&address), sizeof address) != 0)
    victim::Cannot("bind a UNIX socket there");
  victim::Ready();
  victim::Ok("%ld", UntilTold([&] {
    char c;
    Expect(sendto(client, "x", 1, 0, reinterpret_cast<sockaddr*>(&address),
                  sizeof address) == 1,
           "send by path");
    Expect(recv(fd, &c, 1, 0) == 1, "receive");
  }));
}

// Sockets that have nothing to do with the tree, of a process in it.
[[noreturn]] void Elsewhere() {
  Expect(chdir(dir.c_str()) == 0, "chdir");
  int pair[2];
  Expect(socketpair(AF_UNIX, SOCK_SEQPACKET, 0, pair) == 0, "socketpair");
  sockaddr_un address = {};
  address.sun_family = AF_UNIX;
  int length = snprintf(address.sun_path + 1, sizeof address.sun_path - 1,
                        "livemv-victim-%d", getpid());
  int fd = socket(AF_UNIX, SOCK_STREAM, 0);
  auto size = static_cast<socklen_t>(sizeof(sa_family_t) + 1 +
                                     static_cast<size_t>(length));
  Expect(bind(fd, reinterpret_cast<sockaddr*>(&address), size) == 0, "bind");
  Expect(listen(fd, 8) == 0, "listen");
  victim::Ready();
  victim::Ok("%ld", UntilTold([&] {
    char c;
    Expect(write(pair[0], "x", 1) == 1 && read(pair[1], &c, 1) == 1, "a pair");
    int client = socket(AF_UNIX, SOCK_STREAM, 0);
    Expect(connect(client, reinterpret_cast<sockaddr*>(&address), size) == 0,
           "an abstract name");
    int accepted = accept(fd, nullptr, nullptr);
    close(accepted);
    close(client);
  }));
}

int Fifo() {
  std::string path = dir + "/fifo";
  if (mkfifo(path.c_str(), 0600) != 0 && errno != EEXIST)
    victim::Cannot("make a FIFO");
  return Open(path, O_RDWR);
}

[[noreturn]] void FifoWithBytes() {
  int fd = Fifo();
  std::string bytes(60'000, 'f');
  Expect(write(fd, bytes.data(), bytes.size()) == 60'000, "fill it");
  victim::Ready();
  UntilTold([] {});
  std::string got(60'000, 0);
  for (size_t n = 0; n < got.size();) {
    ssize_t more = read(fd, got.data() + n, got.size() - n);
    Expect(more > 0, "read");
    n += static_cast<size_t>(more);
  }
  Expect(got == bytes, "the bytes");
  victim::Ok("1");
}

// A FIFO of the tree in an epoll set. Files and directories cannot be in one.
[[noreturn]] void Epoll() {
  int fd = Fifo(), set = epoll_create1(0);
  epoll_event event = {};
  event.events = EPOLLIN;
  Expect(epoll_ctl(set, EPOLL_CTL_ADD, fd, &event) == 0, "add");
  victim::Ready();
  victim::Ok("%ld", UntilTold([&] {
    char c;
    Expect(epoll_wait(set, &event, 1, 0) == 0, "nothing there");
    Expect(write(fd, "x", 1) == 1, "write");
    Expect(epoll_wait(set, &event, 1, 1000) == 1, "one event");
    Expect(read(fd, &c, 1) == 1, "read");
  }));
}

[[noreturn]] void Inotify() {
  int fd = inotify_init1(IN_NONBLOCK);
  int watch = inotify_add_watch(fd, dir.c_str(), IN_CREATE | IN_DELETE);
  if (watch < 0)
    victim::Cannot("watch a directory");
  victim::Ready();
  victim::Ok("%ld", UntilTold([&] {
    std::string name = dir + "/event";
    int file = Open(name, O_RDWR | O_CREAT | O_CLOEXEC);
    close(file);
    Expect(unlink(name.c_str()) == 0, "unlink");
    long seen = 0;
    alignas(inotify_event) char events[4096];
    for (ssize_t n; (n = read(fd, events, sizeof events)) > 0;)
      for (char* at = events; at < events + n;) {
        inotify_event event;
        memcpy(&event, at, sizeof event);
        Expect((event.mask & IN_IGNORED) == 0 && event.wd == watch,
               "the same watch");
        ++seen;
        at += sizeof event + event.len;
      }
    Expect(seen == 2, "two events");
  }));
}

[[noreturn]] void Fanotify(bool whole_mount) {
  int fd = fanotify_init(FAN_CLASS_NOTIF | FAN_NONBLOCK, O_RDONLY);
  if (fd < 0 ||
      fanotify_mark(fd, whole_mount ? FAN_MARK_ADD | FAN_MARK_MOUNT : FAN_MARK_ADD,
                    FAN_OPEN | FAN_EVENT_ON_CHILD, AT_FDCWD, dir.c_str()) != 0)
    victim::Cannot("mark with fanotify");
  // The mark of a mount is no tie to the tree; this is.
  if (whole_mount)
    Open(MakeFile(dir + "/file", 4096), O_RDWR);
  victim::Ready();
  victim::Ok("%ld", UntilTold([&] {
    alignas(fanotify_event_metadata) char events[8192];
    for (ssize_t n; (n = read(fd, events, sizeof events)) > 0;)
      for (ssize_t at = 0; at < n;) {
        fanotify_event_metadata event;
        memcpy(&event, events + at, sizeof event);
        if (event.fd >= 0)
          close(event.fd);
        at += event.event_len;
      }
  }));
}

// A file of the tree that only the ring knows, not the table of descriptors.
[[noreturn]] void IoUring() {
  io_uring_params params = {};
  int ring = static_cast<int>(syscall(SYS_io_uring_setup, 8, &params));
  if (ring < 0)
    victim::Cannot("set up io_uring");
  int fd = Open(MakeFile(dir + "/file", 4096), O_RDWR);
  if (syscall(SYS_io_uring_register, ring, IORING_REGISTER_FILES, &fd, 1) != 0)
    victim::Cannot("register a file with io_uring");
  close(fd);
  size_t ring_size = params.sq_off.array + params.sq_entries * sizeof(unsigned);
  size_t cq_size = params.cq_off.cqes + params.cq_entries * sizeof(io_uring_cqe);
  ring_size = ring_size > cq_size ? ring_size : cq_size;
  auto* at = static_cast<char*>(mmap(nullptr, ring_size, PROT_READ | PROT_WRITE,
                                     MAP_SHARED | MAP_POPULATE, ring,
                                     IORING_OFF_SQ_RING));
  auto* entries = static_cast<io_uring_sqe*>(
      mmap(nullptr, params.sq_entries * sizeof(io_uring_sqe),
           PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, ring,
           IORING_OFF_SQES));
  if (at == MAP_FAILED || entries == MAP_FAILED)
    victim::Cannot("map the rings");
  auto word = [&](unsigned offset) {
    return reinterpret_cast<unsigned*>(at + offset);
  };
  victim::Ready();
  victim::Ok("%ld", UntilTold([&] {
    unsigned tail = *word(params.sq_off.tail);
    unsigned slot = tail & *word(params.sq_off.ring_mask);
    char bytes[100];
    io_uring_sqe& entry = entries[slot];
    entry = {};
    entry.opcode = IORING_OP_READ;
    entry.flags = IOSQE_FIXED_FILE;
    entry.addr = reinterpret_cast<uint64_t>(bytes);
    entry.len = sizeof bytes;
    word(params.sq_off.array)[slot] = slot;
    __atomic_store_n(word(params.sq_off.tail), tail + 1, __ATOMIC_RELEASE);
    long done = syscall(SYS_io_uring_enter, ring, 1, 1, IORING_ENTER_GETEVENTS,
                        nullptr, 0);
    if (done < 0 && errno == EINTR)  // as with any stop in the middle of it
      done = syscall(SYS_io_uring_enter, ring, 0, 1, IORING_ENTER_GETEVENTS,
                     nullptr, 0);
    Expect(done >= 0, "enter");
    unsigned head = *word(params.cq_off.head);
    auto* cqe = reinterpret_cast<io_uring_cqe*>(at + params.cq_off.cqes) +
                (head & *word(params.cq_off.ring_mask));
    Expect(cqe->res == sizeof bytes && bytes[7] == victim::ByteAt(7), "read");
    __atomic_store_n(word(params.cq_off.head), head + 1, __ATOMIC_RELEASE);
  }));
}

[[noreturn]] void Aio() {
  aio_context_t context = 0;
  if (syscall(SYS_io_setup, 4, &context) != 0)
    victim::Cannot("set up asynchronous I/O");
  int fd = Open(MakeFile(dir + "/file", 4096), O_RDWR);
  victim::Ready();
  victim::Ok("%ld", UntilTold([&] {
    char bytes[100];
    iocb request = {}, *list = &request;
    request.aio_lio_opcode = IOCB_CMD_PREAD;
    request.aio_fildes = static_cast<unsigned>(fd);
    request.aio_buf = reinterpret_cast<uint64_t>(bytes);
    request.aio_nbytes = sizeof bytes;
    io_event event;
    Expect(syscall(SYS_io_submit, context, 1, &list) == 1, "submit");
    Expect(syscall(SYS_io_getevents, context, 1, 1, &event, nullptr) == 1, "get");
    Expect(event.res == sizeof bytes && bytes[7] == victim::ByteAt(7), "read");
  }));
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 3)
    victim::Die("usage");
  dir = argv[1];
  const std::string what = argv[2];
  if (what == "listener")
    Listener();
  if (what == "datagrams")
    Datagrams();
  if (what == "sockets_elsewhere")
    Elsewhere();
  if (what == "fifo")
    FifoWithBytes();
  if (what == "epoll")
    Epoll();
  if (what == "inotify")
    Inotify();
  if (what == "fanotify")
    Fanotify(false);
  if (what == "fanotify_mount")
    Fanotify(true);
  if (what == "io_uring")
    IoUring();
  if (what == "aio")
    Aio();
  victim::Die("no such case");
}
