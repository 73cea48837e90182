#include "migrator/daemon/persist.h"

#include <gtest/gtest.h>

namespace livemv::daemon {
namespace {

Settings Some() {
  Settings s;
  s.id = "abcdef";
  s.dir = "/srv/my job";
  s.target = "nas:/job";
  s.mount_options = "vers=4.2";
  s.fstab_line = "nas:/job /srv/my\\040job nfs vers=4.2,_netdev 0 0";
  return s;
}

TEST(Persist, FstabGetsTheLineOnce) {
  const Settings s = Some();
  const std::string once = FstabWith("UUID=1 / ext4 rw 0 1\n", s);
  EXPECT_EQ(once, "UUID=1 / ext4 rw 0 1\n" + s.fstab_line + "\n");
  EXPECT_EQ(FstabWith(once, s), once);
  EXPECT_EQ(FstabWith("", s), s.fstab_line + "\n");
  EXPECT_EQ(FstabWith("# no newline", s), "# no newline\n" + s.fstab_line + "\n");
}

TEST(Persist, WhatWasMountedThereBecomesAComment) {
  const Settings s = Some();
  EXPECT_EQ(FstabWith("/dev/sdb1\t/srv/my\\040job ext4 rw 0 2\n"
                      "# /dev/sdc1 /srv/my\\040job ext4 rw 0 2\n"
                      "/dev/sdd1 /srv/my ext4 rw 0 2\n",
                      s),
            "# replaced by livemv: /dev/sdb1\t/srv/my\\040job ext4 rw 0 2\n"
            "# /dev/sdc1 /srv/my\\040job ext4 rw 0 2\n"
            "/dev/sdd1 /srv/my ext4 rw 0 2\n" +
                s.fstab_line + "\n");
}

// As systemd-escape --path --suffix=mount has them.
TEST(Persist, UnitsAreNamedForTheirPath) {
  EXPECT_EQ(MountUnitName("/srv/job"), "srv-job.mount");
  EXPECT_EQ(MountUnitName("/srv/my job-1/.x"),
            "srv-my\\x20job\\x2d1-.x.mount");
  EXPECT_EQ(MountUnitName("/.hidden"), "\\x2ehidden.mount");
}

TEST(Persist, UnitOfAnExportWaitsForTheNetwork) {
  EXPECT_EQ(MountUnit(Some()),
            "[Unit]\nDescription=Moved here by livemv (abcdef)\n"
            "Wants=network-online.target\nAfter=network-online.target\n"
            "\n[Mount]\nWhat=nas:/job\nWhere=/srv/my job\nType=nfs\n"
            "Options=vers=4.2\n\n[Install]\nWantedBy=remote-fs.target\n");
  Settings s = Some();
  s.target = "/mnt/100%";
  s.mount_options.clear();
  EXPECT_EQ(MountUnit(s),
            "[Unit]\nDescription=Moved here by livemv (abcdef)\n"
            "\n[Mount]\nWhat=/mnt/100%%\nWhere=/srv/my job\nType=none\n"
            "Options=bind\n\n[Install]\nWantedBy=local-fs.target\n");
}

}  // namespace
}  // namespace livemv::daemon
