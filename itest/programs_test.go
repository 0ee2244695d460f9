//go:build linux && long

package itest

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"fwd/itest/fwdtest"
	"fwd/itest/lab"
)

// Real programs while their path breaks: what a person would see. Skipped where they are not installed.

// trouble is a world where a relayed forward to a port of the NAS is about to lose its relay and its address.
type trouble struct{ *faulty }

func newTrouble(t *testing.T, port, name string, programs ...string) (w trouble, local string) {
	t.Helper()
	for _, p := range programs {
		if _, err := exec.LookPath(p); err != nil {
			t.Skip(err)
		}
	}
	w = trouble{&faulty{world: newWorld(t, lab.PortRestricted, lab.PortRestricted), fault: fault{path: "relay"}, told: map[*fwdtest.Peer]int{}}}
	w.away = w.lab.Home("away", lab.PortRange, slow())
	w.relays, w.runs = []*fwdtest.Peer{w.relay}, []*fwdtest.Process{w.relaying}
	w.cutDirect()
	w.nas.Start("expose", port, "--name", name).Wait("exposed")
	local = w.laptop.Start("connect", name, "127.0.0.1:2224").Wait("listening").Local
	w.laptop.WaitPath(name, "relay")
	return w, local
}

// strike: the relay dies and comes back, the laptop goes to another network, a direct path is found.
func (w trouble) strike() {
	w.t.Log("relay killed with -9")
	w.killRelay(0)
	time.Sleep(time.Second)
	w.startRelays()
	time.Sleep(4 * time.Second)
	w.t.Log("laptop moved to another network")
	w.laptop.Host.MoveTo(w.away)
	time.Sleep(4 * time.Second)
	w.t.Log("and back; the homes can reach each other now")
	w.mendDirect()
	w.laptop.Host.MoveTo(w.homes[1])
	time.Sleep(6 * time.Second)
}

func (w trouble) command(host *lab.Host, ctx context.Context, name string, args ...string) *lab.Cmd {
	cmd := host.Command(ctx, name, args...)
	cmd.Env = append(os.Environ(), "HOME="+w.laptop.Home)
	return cmd
}

// sshd runs on the NAS until the test ends, and gives the arguments with which ssh gets in.
func (w trouble) sshd(local string) []string {
	w.t.Helper()
	dir, err := os.MkdirTemp("", "fwd-ssh-")
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { os.RemoveAll(dir) })
	for _, k := range []string{"host", "user"} {
		if out, err := exec.Command("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", filepath.Join(dir, k)).CombinedOutput(); err != nil {
			w.t.Fatalf("%v: %s", err, out)
		}
	}
	os.MkdirAll("/run/sshd", 0o755)
	cmd := w.nas.Host.Command(w.t.Context(), "/usr/sbin/sshd", "-D", "-e", "-f", "/dev/null", "-p", "22", "-h", filepath.Join(dir, "host"),
		"-o", "AuthorizedKeysFile="+filepath.Join(dir, "user.pub"), "-o", "StrictModes=no", "-o", "PidFile=none", "-o", "UsePAM=no")
	if err := cmd.Start(); err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	_, port, _ := strings.Cut(local, ":")
	return []string{"-p", port, "-i", filepath.Join(dir, "user"), "-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null",
		"-o", "LogLevel=ERROR", "-o", "ServerAliveInterval=0"}
}

// A person looks at a running program in a terminal over ssh, and types.
func TestInteractiveSSHGoesOn(t *testing.T) {
	w, local := newTrouble(t, "22", "ssh", "ssh", "/usr/sbin/sshd")
	args := append([]string{"-tt"}, w.sshd(local)...)
	ctx, cancel := context.WithTimeout(t.Context(), 2*fwdtest.Limit)
	defer cancel()
	// A line every 100 ms, and what is typed comes back.
	script := `(i=0; while :; do i=$((i+1)); echo "tick $i"; sleep 0.1; done) & while read -r line; do echo "got $line"; [ "$line" = bye ] && break; done; kill $!`
	cmd := w.command(w.laptop.Host, ctx, "ssh", append(args, "root@127.0.0.1", "exec bash -c '"+strings.ReplaceAll(script, "'", `'\''`)+"'")...)
	stdin, _ := cmd.StdinPipe()
	stdout, _ := cmd.StdoutPipe()
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	type seen struct {
		ticks int
		typed int // of two words, what the far shell has got
		stall time.Duration
		wrong string
	}
	done := make(chan seen, 1)
	go func() { // ends with ssh
		var s seen
		last := time.Time{}
		for lines := bufio.NewScanner(stdout); lines.Scan(); {
			var n int
			if _, err := fmt.Sscanf(lines.Text(), "tick %d", &n); err != nil {
				if strings.HasPrefix(lines.Text(), "got ") {
					s.typed++
				}
				continue
			}
			if n != s.ticks+1 {
				s.wrong += fmt.Sprintf(" %d after %d;", n, s.ticks)
			}
			if s.ticks = n; !last.IsZero() {
				s.stall = max(s.stall, time.Since(last))
			}
			last = time.Now()
		}
		done <- s
	}()
	time.Sleep(3 * time.Second)
	fmt.Fprintln(stdin, "hello")
	w.strike()
	fmt.Fprintln(stdin, "bye")
	s := <-done
	stdin.Close()
	cmd.Wait()
	t.Logf("ssh: %d ticks in order, longest stall %v; %s", s.ticks, s.stall.Round(10*time.Millisecond), stderr.String())
	if s.ticks < 50 || s.typed != 2 || s.wrong != "" || s.stall > stallLimit {
		t.Errorf("%+v", s)
	}
}

func TestRsyncOfATreeGoesOn(t *testing.T) {
	w, local := newTrouble(t, "22", "ssh", "ssh", "/usr/sbin/sshd", "rsync")
	from, to := t.TempDir(), t.TempDir()
	rng := rand.NewChaCha8([32]byte{1})
	for i := range 600 {
		dir := filepath.Join(from, fmt.Sprint(i%20))
		os.MkdirAll(dir, 0o755)
		buf := make([]byte, 1+int(rng.Uint64()%(512<<10)))
		rng.Read(buf)
		if err := os.WriteFile(filepath.Join(dir, fmt.Sprint(i)), buf, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), 5*fwdtest.Limit)
	defer cancel()
	cmd := w.command(w.laptop.Host, ctx, "rsync", "-a", "--bwlimit=9000", "-e", "ssh "+strings.Join(w.sshd(local), " "), from+"/", "root@127.0.0.1:"+to+"/")
	over := make(chan error, 1)
	var out []byte
	start := time.Now()
	go func() { // ends with rsync
		var err error
		out, err = cmd.CombinedOutput()
		over <- err
	}()
	time.Sleep(2 * time.Second)
	w.strike()
	if err := <-over; err != nil {
		t.Fatalf("rsync: %v\n%s", err, out)
	}
	a, n := treeSum(t, from)
	if b, _ := treeSum(t, to); a != b {
		t.Error("the trees differ")
	}
	t.Logf("rsync: %d files, %d MiB in %v, equal", 600, n>>20, time.Since(start).Round(time.Second))
}

func TestRedisTransactionGoesOn(t *testing.T) {
	w, local := newTrouble(t, "6379", "redis", "redis-server")
	server := w.nas.Host.Command(t.Context(), "redis-server", "--port", "6379", "--save", "", "--dir", t.TempDir())
	if err := server.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { server.Process.Kill(); server.Wait() })
	time.Sleep(time.Second) // its start
	conn, err := w.laptop.Host.Dial(t.Context(), "tcp", local)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	answers := bufio.NewReader(conn)
	var worst time.Duration
	ask := func(command, want string) {
		t.Helper()
		start := time.Now()
		conn.SetDeadline(start.Add(fwdtest.Limit))
		fmt.Fprintf(conn, "%s\r\n", command)
		got, err := answers.ReadString('\n')
		if worst = max(worst, time.Since(start)); err != nil || strings.TrimSpace(got) != want {
			t.Fatalf("%s: %q, %v; want %q", command, got, err, want)
		}
	}
	ask("SET n 0", "+OK")
	ask("MULTI", "+OK")
	over := make(chan struct{})
	go func() { defer close(over); w.strike() }()
	count := 0
	for struck := false; !struck; count++ {
		ask("INCR n", "+QUEUED")
		select {
		case <-over:
			struck = true
		case <-time.After(50 * time.Millisecond):
		}
	}
	ask("EXEC", fmt.Sprintf("*%d", count))
	for i := range count {
		if got, _ := answers.ReadString('\n'); strings.TrimSpace(got) != fmt.Sprintf(":%d", i+1) {
			t.Fatalf("answer %d: %q", i, got)
		}
	}
	t.Logf("redis: a transaction of %d commands, longest answer %v", count, worst.Round(10*time.Millisecond))
}

// film is a file of pseudo-random bytes that needs no room.
type film struct{ size, at int64 }

func (f *film) Seek(offset int64, whence int) (int64, error) {
	f.at = offset + map[int]int64{io.SeekStart: 0, io.SeekCurrent: f.at, io.SeekEnd: f.size}[whence]
	return f.at, nil
}

func (f *film) Read(p []byte) (int, error) {
	n := min(int64(len(p)), f.size-f.at)
	if n <= 0 {
		return 0, io.EOF
	}
	for i := range p[:n] {
		p[i] = frame(f.at + int64(i))
	}
	f.at += n
	return int(n), nil
}

func frame(at int64) byte { return byte(at*31 + at>>9*7 + at>>17*13) }

// A player asks for range after range, as fast as 4K video needs them, and has 10 s in its buffer.
func TestVideoPlaysOn(t *testing.T) {
	const (
		rate   = 3 << 20 // bytes a second, 25 Mbit/s
		part   = 2 << 20
		parts  = 40
		buffer = 10 * time.Second
	)
	w, local := newTrouble(t, "80", "video")
	listener, err := w.nas.Host.Listen("tcp", "127.0.0.1:80")
	if err != nil {
		t.Fatal(err)
	}
	server := http.Server{Handler: http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		http.ServeContent(rw, r, "film.mp4", time.Time{}, &film{size: part * parts})
	})}
	go server.Serve(listener)
	t.Cleanup(func() { server.Close() })
	transport := &http.Transport{MaxConnsPerHost: 1, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return w.laptop.Host.Dial(ctx, "tcp", local)
	}}
	defer transport.CloseIdleConnections()
	over := make(chan struct{})
	go func() { defer close(over); w.strike() }()
	var worst time.Duration
	start := time.Now()
	for i := range int64(parts) {
		request, _ := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://video/film.mp4", nil)
		request.Header.Set("Range", fmt.Sprintf("bytes=%d-%d", i*part, (i+1)*part-1))
		asked := time.Now()
		answer, err := transport.RoundTrip(request)
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(answer.Body)
		answer.Body.Close()
		if err != nil || answer.StatusCode != http.StatusPartialContent || len(body) != part {
			t.Fatalf("part %d: %s, %d bytes, %v", i, answer.Status, len(body), err)
		}
		for j, b := range body {
			if b != frame(i*part+int64(j)) {
				t.Fatalf("byte %d of part %d is wrong", j, i)
			}
		}
		worst = max(worst, time.Since(asked))
		// The player asks for more when there is room in its buffer.
		played := time.Duration(float64((i+1)*part)/rate*float64(time.Second)) - buffer
		time.Sleep(time.Until(start.Add(played)))
	}
	<-over
	if worst > buffer {
		t.Errorf("the picture stood still: a part took %v", worst)
	}
	t.Logf("video: %d parts of %d bytes, longest wait for one %v", parts, part, worst.Round(10*time.Millisecond))
}

func treeSum(t *testing.T, root string) (sum [32]byte, bytes int64) {
	t.Helper()
	hash := sha256.New()
	err := filepath.WalkDir(root, func(path string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		rel, _ := filepath.Rel(root, path)
		fmt.Fprintln(hash, rel)
		file, err := os.Open(path)
		if err != nil {
			return err
		}
		defer file.Close()
		n, err := io.Copy(hash, file)
		bytes += n
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return [32]byte(hash.Sum(nil)), bytes
}
