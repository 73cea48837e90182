// Random operations on one file, each checked against a model in memory.
//
//   fsx FILE MODEL [--ways=plain,mmap,direct] [--ops=N] [--seconds=S]
//       [--seed=N] [--max-mb=4] [--until-file=PATH]
//
// What FILE holds at the start is the model's beginning. Ways: plain reads and
// writes (also with O_APPEND and by copy_file_range), shared mappings, O_DIRECT;
// truncation, holes, preallocation, seeking for data, fsync and reopening belong
// to each. Ends after N operations, S seconds, or when PATH exists; then the
// whole file is compared, and MODEL gets what it must hold, for a comparison
// later. Exits 1 at the first difference, with the operations before it.

#include <fcntl.h>
#include <linux/falloc.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <fstream>
#include <memory>
#include <random>
#include <string>
#include <vector>

namespace {

constexpr size_t kBlock = 4096;
constexpr size_t kLongest = 192 << 10;  // bytes of one operation
constexpr size_t kTold = 40;            // operations told of at a difference

class Fsx {
 public:
  Fsx(std::string path, uint64_t seed, size_t max)
      : path_(std::move(path)),
        random_(seed),
        max_(max),
        buffer_(static_cast<char*>(std::aligned_alloc(kBlock, kLongest))) {
    Reopen();
    struct stat st;
    Check(fstat(fd_, &st), "fstat");
    model_.resize(static_cast<size_t>(st.st_size));
    size_t got = 0;
    while (got < model_.size()) {
      ssize_t n = pread(fd_, model_.data() + got, model_.size() - got,
                        static_cast<off_t>(got));
      Check(n, "read of the whole file");
      if (n == 0)
        Differs("the file is shorter than fstat said");
      got += static_cast<size_t>(n);
    }
  }

  void Allow(const std::string& ways) {
    plain_ = ways.find("plain") != ways.npos;
    mapped_ = ways.find("mmap") != ways.npos;
    direct_ = ways.find("direct") != ways.npos;
    if (!plain_ && !mapped_ && !direct_) {
      std::fprintf(stderr, "fsx: no way to go\n");
      std::exit(64);
    }
  }

  void Step() {
    count_++;
    switch (Below(24)) {
      case 0:
        return Truncate();
      case 1:
        return Punch();
      case 2:
        return Allocate();
      case 3:
        return SeekData();
      case 4:
        return Sync();
      case 5:
        return Below(4) == 0 ? Reopen() : CheckSize();
      case 6:
      case 7:
        return plain_ ? Append() : Write();
      case 8:
        return plain_ ? CopyRange() : Read();
      default:
        return count_ % 2 == 0 ? Read() : Write();
    }
  }

  void Finish(const std::string& to) {
    Note("the whole file");
    CheckSize();
    std::vector<char> found(model_.size());
    size_t got = 0;
    while (got < found.size()) {
      ssize_t n = pread(fd_, found.data() + got, found.size() - got,
                        static_cast<off_t>(got));
      Check(n, "read at the end");
      if (n == 0)
        break;
      got += static_cast<size_t>(n);
    }
    Compare(0, found.data(), got);
    Check(fsync(fd_), "fsync at the end");
    Check(close(fd_), "close at the end");
    std::ofstream out(to, std::ios::binary | std::ios::trunc);
    out.write(model_.data(), static_cast<std::streamsize>(model_.size()));
    out.close();
    if (!out)
      Differs("the model cannot be written to " + to);
  }
  uint64_t count() const { return count_; }

 private:
  [[noreturn]] void Differs(const std::string& what) {
    for (const std::string& told : told_)
      std::fprintf(stderr, "  %s\n", told.c_str());
    std::fprintf(stderr, "fsx: %s: after %llu operations: %s\n", path_.c_str(),
                 static_cast<unsigned long long>(count_), what.c_str());
    std::exit(1);
  }
  void Check(ssize_t result, const char* call) {
    if (result < 0)
      Differs(std::string(call) + ": " + std::strerror(errno));
  }
  void Note(const std::string& text) {
    told_.push_back("#" + std::to_string(count_) + " " + text);
    if (told_.size() > kTold)
      told_.pop_front();
  }
  void Note(const char* what, size_t from, size_t len) {
    Note(std::string(what) + " [" + std::to_string(from) + ", " +
         std::to_string(from + len) + ") of " + std::to_string(model_.size()));
  }
  size_t Below(size_t n) {
    return std::uniform_int_distribution<size_t>(0, n - 1)(random_);
  }
  // Often at the ends of blocks and of the file, where the mistakes are.
  size_t Offset(size_t limit) {
    size_t at = Below(limit + 1);
    switch (Below(6)) {
      case 0:
        at = at / kBlock * kBlock;
        break;
      case 1:
        at = model_.size();
        break;
      case 2:
        at = model_.size() / kBlock * kBlock;
        break;
    }
    return std::min(at, limit);
  }
  size_t Length() {
    const size_t most = Below(3) == 0 ? kLongest : 3 * kBlock;
    return 1 + Below(most);
  }

  void Compare(size_t at, const char* found, size_t len) {
    for (size_t i = 0; i < len; i++) {
      if (found[i] == model_[at + i])
        continue;
      size_t bad = 0;
      for (size_t j = i; j < len; j++)
        bad += found[j] != model_[at + j];
      char text[160];
      std::snprintf(text, sizeof text,
                    "byte %zu is %02x and must be %02x; %zu of %zu bytes from "
                    "%zu differ",
                    at + i, found[i] & 0xff, model_[at + i] & 0xff, bad, len,
                    at);
      Differs(text);
    }
  }
  void CheckSize() {
    struct stat st, by_path;
    Check(fstat(fd_, &st), "fstat");
    Check(stat(path_.c_str(), &by_path), "stat");
    if (static_cast<size_t>(st.st_size) != model_.size() ||
        st.st_size != by_path.st_size)
      Differs("the size is " + std::to_string(st.st_size) + ", by name " +
              std::to_string(by_path.st_size) + ", and must be " +
              std::to_string(model_.size()));
  }

  // The way of this operation.
  enum class Way { kPlain, kMapped, kDirect };
  Way PickWay() {
    for (;;) {
      switch (Below(3)) {
        case 0:
          if (plain_)
            return Way::kPlain;
          break;
        case 1:
          if (mapped_)
            return Way::kMapped;
          break;
        default:
          if (direct_)
            return Way::kDirect;
      }
    }
  }

  void Read() {
    if (model_.empty())
      return;
    const Way way = PickWay();
    size_t at = Offset(model_.size() - 1), len = Length();
    if (way == Way::kDirect) {
      at = at / kBlock * kBlock;
      len = (len + kBlock - 1) / kBlock * kBlock;
    }
    const size_t there = at < model_.size() ? model_.size() - at : 0;
    const size_t want = std::min(len, there);
    if (way == Way::kMapped) {
      Note("map and read", at, want);
      if (want == 0)
        return;
      Mapping map(this, at, want, PROT_READ);
      Compare(at, map.data(), want);
      return;
    }
    Note(way == Way::kDirect ? "read direct" : "read", at, len);
    ssize_t got = pread(way == Way::kDirect ? direct_fd_ : fd_, buffer_.get(),
                        std::min(len, kLongest), static_cast<off_t>(at));
    Check(got, "pread");
    if (static_cast<size_t>(got) != std::min({len, kLongest, there}))
      Differs("pread gave " + std::to_string(got) + " bytes of " +
              std::to_string(want));
    Compare(at, buffer_.get(), static_cast<size_t>(got));
  }

  void Invent(size_t len) {
    for (size_t i = 0; i < len; i++)
      buffer_.get()[i] = static_cast<char>(random_() | 1);  // no zeros
  }
  void Remember(size_t at, size_t len) {
    if (model_.size() < at + len)
      model_.resize(at + len);
    std::memcpy(model_.data() + at, buffer_.get(), len);
  }

  void Write() {
    const Way way = PickWay();
    size_t at = Offset(max_ - kLongest), len = Length();
    Invent(len);
    if (way == Way::kMapped) {
      if (model_.empty())
        return;
      at = std::min(at, model_.size() - 1);
      len = std::min(len, model_.size() - at);
      Note("map and write", at, len);
      {
        Mapping map(this, at, len, PROT_READ | PROT_WRITE);
        std::memcpy(map.data(), buffer_.get(), len);
        if (Below(3) == 0)
          map.Sync();
      }
      return Remember(at, len);
    }
    if (way == Way::kDirect) {
      at = at / kBlock * kBlock;
      len = std::max(len / kBlock, size_t{1}) * kBlock;
      Invent(len);
    }
    Note(way == Way::kDirect ? "write direct" : "write", at, len);
    ssize_t put = pwrite(way == Way::kDirect ? direct_fd_ : fd_, buffer_.get(),
                         len, static_cast<off_t>(at));
    Check(put, "pwrite");
    if (static_cast<size_t>(put) != len)
      Differs("pwrite took " + std::to_string(put));
    Remember(at, len);
  }

  void Append() {
    const size_t len = 1 + Below(kBlock);
    if (model_.size() + len > max_)
      return Truncate();
    Note("append", model_.size(), len);
    Invent(len);
    int fd = open(path_.c_str(), O_WRONLY | O_APPEND);
    Check(fd, "open to append");
    ssize_t put = write(fd, buffer_.get(), len);
    Check(put, "append");
    Check(close(fd), "close");
    if (static_cast<size_t>(put) != len)
      Differs("the append took " + std::to_string(put));
    Remember(model_.size(), len);
  }

  void CopyRange() {
    if (model_.size() < 2 * kBlock)
      return;
    const size_t len = 1 + Below(std::min(kLongest, model_.size() / 2));
    const size_t from = Below(model_.size() / 2 - len + 1);
    const size_t to = model_.size() / 2 + Below(model_.size() / 2 - len + 1);
    Note(("copy to " + std::to_string(to)).c_str(), from, len);
    off_t in = static_cast<off_t>(from), out = static_cast<off_t>(to);
    size_t done = 0;
    while (done < len) {
      ssize_t n = copy_file_range(fd_, &in, fd_, &out, len - done, 0);
      Check(n, "copy_file_range");
      if (n == 0)
        Differs("copy_file_range copied nothing");
      done += static_cast<size_t>(n);
    }
    std::memcpy(buffer_.get(), model_.data() + from, len);
    Remember(to, len);
  }

  void Truncate() {
    const size_t to = Below(5) == 0 ? 0 : Offset(max_ - kLongest);
    Note("truncate to " + std::to_string(to) + " of " +
         std::to_string(model_.size()));
    if (to == 0 && Below(2) == 0) {
      int fd = open(path_.c_str(), O_WRONLY | O_TRUNC);
      Check(fd, "open to truncate");
      Check(close(fd), "close");
    } else {
      Check(Below(2) == 0 ? ftruncate(fd_, static_cast<off_t>(to))
                          : truncate(path_.c_str(), static_cast<off_t>(to)),
            "truncate");
    }
    model_.resize(to);
  }

  void Zero(size_t at, size_t len) {
    for (size_t i = at; i < std::min(at + len, model_.size()); i++)
      model_[i] = 0;
  }
  // False: this filesystem does not do it, which is an answer.
  bool Done(int result, const char* call) {
    if (result < 0 && errno == EOPNOTSUPP)
      return false;
    Check(result, call);
    return true;
  }

  void Punch() {
    const size_t at = Offset(max_ - kLongest), len = Length();
    Note("punch", at, len);
    if (Done(fallocate(fd_, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
                       static_cast<off_t>(at), static_cast<off_t>(len)),
             "punch a hole"))
      Zero(at, len);
  }

  void Allocate() {
    const size_t at = Offset(max_ - kLongest), len = Length();
    const int modes[] = {0, FALLOC_FL_KEEP_SIZE, FALLOC_FL_ZERO_RANGE,
                         FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE};
    const int mode = modes[Below(4)];
    Note(("allocate " + std::to_string(mode)).c_str(), at, len);
    if (!Done(fallocate(fd_, mode, static_cast<off_t>(at),
                        static_cast<off_t>(len)),
              "fallocate"))
      return;
    if (mode & FALLOC_FL_ZERO_RANGE)
      Zero(at, len);
    if (!(mode & FALLOC_FL_KEEP_SIZE) && model_.size() < at + len)
      model_.resize(at + len);
  }

  // What is said to be a hole must read as zeros.
  void SeekData() {
    if (model_.empty())
      return;
    const size_t at = Below(model_.size());
    Note("seek from " + std::to_string(at));
    off_t data = lseek(fd_, static_cast<off_t>(at), SEEK_DATA);
    if (data < 0 && errno != ENXIO)
      Check(data, "SEEK_DATA");
    const size_t until =
        data < 0 ? model_.size() : static_cast<size_t>(data);
    if (until < at || until > model_.size())
      Differs("SEEK_DATA went to " + std::to_string(data));
    for (size_t i = at; i < until; i++) {
      if (model_[i] != 0)
        Differs("SEEK_DATA from " + std::to_string(at) + " went to " +
                std::to_string(data) + ", past data at " + std::to_string(i));
    }
    off_t hole = lseek(fd_, static_cast<off_t>(at), SEEK_HOLE);
    Check(hole, "SEEK_HOLE");
    if (static_cast<size_t>(hole) < at ||
        static_cast<size_t>(hole) > model_.size())
      Differs("SEEK_HOLE went to " + std::to_string(hole));
  }

  void Sync() {
    Note("sync");
    Check(Below(2) == 0 ? fsync(fd_) : fdatasync(fd_), "fsync");
  }

  void Reopen() {
    Note("reopen");
    if (fd_ >= 0) {
      Check(close(fd_), "close");
      Check(close(direct_fd_), "close");
    }
    fd_ = open(path_.c_str(), O_RDWR | O_CREAT, 0644);
    Check(fd_, "open");
    direct_fd_ = open(path_.c_str(), O_RDWR | O_DIRECT);
    Check(direct_fd_, "open with O_DIRECT");
  }

  // Of bytes, from the page's start before them.
  class Mapping {
   public:
    Mapping(Fsx* fsx, size_t at, size_t len, int protection)
        : before_(at % kBlock), bytes_(before_ + len) {
      base_ = mmap(nullptr, bytes_, protection, MAP_SHARED, fsx->fd_,
                   static_cast<off_t>(at - before_));
      if (base_ == MAP_FAILED)
        fsx->Differs(std::string("mmap: ") + std::strerror(errno));
    }
    ~Mapping() { munmap(base_, bytes_); }
    char* data() const { return static_cast<char*>(base_) + before_; }
    void Sync() { msync(base_, bytes_, MS_SYNC); }

   private:
    const size_t before_, bytes_;
    void* base_;
  };

  struct Free {
    void operator()(char* p) const { std::free(p); }
  };
  const std::string path_;
  std::mt19937_64 random_;
  const size_t max_;
  std::unique_ptr<char, Free> buffer_;
  bool plain_ = true, mapped_ = true, direct_ = true;
  int fd_ = -1, direct_fd_ = -1;
  std::vector<char> model_;
  std::deque<std::string> told_;
  uint64_t count_ = 0;
};

}  // namespace

int main(int argc, char** argv) {
  std::string ways = "plain,mmap,direct", until;
  uint64_t ops = UINT64_MAX, seed = 1;
  double seconds = 1e9, max_mb = 4;
  std::vector<std::string> names;
  for (int i = 1; i < argc; i++) {
    const std::string word = argv[i];
    const size_t sign = word.find('=');
    const std::string name = word.substr(0, sign),
                      value = sign == word.npos ? "" : word.substr(sign + 1);
    if (!word.starts_with("--"))
      names.push_back(word);
    else if (name == "--ways")
      ways = value;
    else if (name == "--ops")
      ops = std::stoull(value);
    else if (name == "--seconds")
      seconds = std::stod(value);
    else if (name == "--seed")
      seed = std::stoull(value);
    else if (name == "--max-mb")
      max_mb = std::stod(value);
    else if (name == "--until-file")
      until = value;
    else
      names.clear(), i = argc;
  }
  if (names.size() != 2) {
    std::fprintf(stderr,
                 "usage: fsx FILE MODEL [--ways=plain,mmap,direct] [--ops=N] "
                 "[--seconds=S] [--seed=N] [--max-mb=M] [--until-file=PATH]\n");
    return 64;
  }
  Fsx fsx(names[0], seed, static_cast<size_t>(max_mb * (1 << 20)));
  fsx.Allow(ways);
  const auto end = std::chrono::steady_clock::now() +
                   std::chrono::duration<double>(seconds);
  while (fsx.count() < ops && std::chrono::steady_clock::now() < end &&
         (until.empty() || access(until.c_str(), F_OK) != 0))
    fsx.Step();
  fsx.Finish(names[1]);
  std::printf("%llu operations\n",
              static_cast<unsigned long long>(fsx.count()));
}
