package main

import (
	"crypto/rand"
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"fwd/itest/fwdtest"
)

// sshdPath is the server's file, which is in no PATH and wants to be called by
// its whole name; empty if there is none.
func sshdPath() string {
	for _, path := range []string{"/usr/sbin/sshd", "/usr/local/sbin/sshd"} {
		if _, err := os.Stat(path); err == nil {
			return path
		}
	}
	return ""
}

// cmdBytes writes a file of so many bytes that no line ending or compression
// could leave as they are.
func cmdBytes(ts *testscript.TestScript, neg bool, args []string) {
	n, err := strconv.Atoi(args[0])
	ts.Check(err)
	b := make([]byte, n)
	rand.Read(b)
	ts.Check(os.WriteFile(ts.MkAbs(args[1]), b, 0o600))
}

// cmdAppend adds a file to another.
func cmdAppend(ts *testscript.TestScript, neg bool, args []string) {
	to := ts.MkAbs(args[1])
	before, err := os.ReadFile(to)
	ts.Check(err)
	ts.Check(os.WriteFile(to, append(before, ts.ReadFile(args[0])...), 0o600))
}

// cmdForeign makes a public key the one that is known for a host.
func cmdForeign(ts *testscript.TestScript, neg bool, args []string) {
	ts.Check(os.WriteFile(ts.MkAbs(args[1]), []byte(args[2]+" "+ts.ReadFile(args[0])), 0o600))
}

// cmdSSHD starts a private sshd on loopback, with its own host key and this
// user's throw-away one, and sets SSHD to its address. CONFIG is an ssh_config
// with which to reach it.
func cmdSSHD(ts *testscript.TestScript, neg bool, args []string) {
	if len(args) != 1 {
		ts.Fatalf("usage: sshd CONFIG")
	}
	sshd := sshdPath()
	keygen, err := exec.LookPath("ssh-keygen")
	ts.Check(err)
	me, err := user.Current()
	ts.Check(err)
	dir := ts.MkAbs("sshd")
	ts.Check(os.MkdirAll(dir, 0o700))
	for _, name := range []string{"host", "id"} {
		out, err := exec.Command(keygen, "-q", "-t", "ed25519", "-N", "", "-f", filepath.Join(dir, name)).CombinedOutput()
		if err != nil {
			ts.Fatalf("ssh-keygen: %v: %s", err, out)
		}
	}
	if me.Uid == "0" {
		os.MkdirAll("/run/sshd", 0o755) // root's sshd wants it
	}
	port := fwdtest.FreePort(ts)
	config := fmt.Sprintf(`HostKey %[1]s/host
AuthorizedKeysFile %[1]s/id.pub
PidFile none
ListenAddress 127.0.0.1
Port %[2]d
StrictModes no
UsePAM no
PasswordAuthentication no
PermitRootLogin prohibit-password
PermitUserEnvironment no
Subsystem sftp internal-sftp
`, dir, port)
	ts.Check(os.WriteFile(filepath.Join(dir, "config"), []byte(config), 0o600))
	server := exec.Command(sshd, "-D", "-e", "-f", filepath.Join(dir, "config"))
	log, err := os.Create(filepath.Join(dir, "log"))
	ts.Check(err)
	server.Stderr = log
	ts.Check(server.Start())
	log.Close()
	s := stageOf(ts)
	s.servers = append(s.servers, server)
	addr := net.JoinHostPort("127.0.0.1", strconv.Itoa(port))
	for end := time.Now().Add(patience); ; time.Sleep(20 * time.Millisecond) {
		c, err := net.Dial("tcp", addr)
		if err == nil {
			c.Close()
			break
		}
		if time.Now().After(end) {
			text, _ := os.ReadFile(filepath.Join(dir, "log"))
			ts.Fatalf("sshd does not listen: %v\n%s", err, text)
		}
	}
	ts.Setenv("SSHD", addr)
	lines := []string{
		"UserKnownHostsFile " + dir + "/known", "GlobalKnownHostsFile none", "IdentityFile " + dir + "/id", "IdentitiesOnly yes",
		"User " + me.Username, "StrictHostKeyChecking accept-new", "BatchMode yes", "LogLevel ERROR", "",
	}
	ts.Check(os.WriteFile(ts.MkAbs(args[0]), []byte(strings.Join(lines, "\n")), 0o600))
}
