package forward

import (
	"strings"
	"testing"
)

func TestParseTarget(t *testing.T) {
	for _, c := range []struct{ in, want, name string }{
		{"22", "127.0.0.1:22", "ssh"},
		{"22/tcp", "127.0.0.1:22", "ssh"},
		{"3000", "127.0.0.1:3000", "port-3000"},
		{"8080", "127.0.0.1:8080", "http"},
		{"8000-8010", "127.0.0.1:8000-8010", "http"},
		{"[::1]:7000-7001/udp", "[::1]:7000-7001/udp", "port-7000"},
		{"host:5-5", "host:5", "port-5"},
		{"51820/udp", "127.0.0.1:51820/udp", "port-51820"},
		{"router:53/udp", "router:53/udp", "dns"},
		{"printer:631", "printer:631", "ipp"},
		{"192.168.1.7:80", "192.168.1.7:80", "http"},
		{"[::1]:443", "[::1]:443", "https"},
		{"[fe80::1%eth0]:22", "[fe80::1%eth0]:22", "ssh"},
		{"unix:/var/run/docker.sock", "unix:/var/run/docker.sock", "docker"},
		{"unix:/run/My App!.socket", "unix:/run/My App!.socket", "my-app"},
		{"unix:/…", "unix:/…", "socket"},
	} {
		got, err := ParseTarget(c.in)
		if err != nil {
			t.Errorf("ParseTarget(%q): %v", c.in, err)
			continue
		}
		if got.String() != c.want {
			t.Errorf("ParseTarget(%q) = %s, want %s", c.in, got, c.want)
		}
		if name := got.DefaultName(); name != c.name {
			t.Errorf("default name of %q = %q, want %q", c.in, name, c.name)
		}
	}
}

// Each mistake is answered with what to write instead.
func TestTargetMistakesNameTheirMend(t *testing.T) {
	for _, c := range []struct{ in, mend string }{
		{"", "write a port"},
		{"ssh", `"ssh" is no port`},
		{"0", "outside 1 to 65535"},
		{"65536", "outside 1 to 65535"},
		{"99999999999999999999", "outside 1 to 65535"},
		{"-1", "no port number"},
		{"+22", "no port number"},
		{"8010-8000", "8000-8010"},
		{"1-1025", "at most 1024"},
		{"8000-99999", "outside"},
		{"0-5", "outside"},
		{"22/sctp", "/tcp, /udp"},
		{"http://localhost:80", "host:port"},
		{"/var/run/docker.sock", "unix:/var/run/docker.sock"},
		{"unix:", "unix:/path"},
		{"unix:docker.sock", "whole path"},
		{"unix:/a\x00b", "control character"},
		{"unix:/" + strings.Repeat("a", 103), "103"},
		{":22", "only the port, 22"},
		{"::1", "[::1]:PORT"},
		{"fe80::a:b:c:d:22", "[fe80::a:b:c:d:22]:PORT"},
		{"2001:db8:0:0:0:0:0:1:22", "[2001:db8:0:0:0:0:0:1]:22"},
		{"[localhost]:22", "no IPv6 address"},
		{"host:", "has no port"},
		{"host:ssh", "no port number"},
		{"my host:22", "no host name"},
		{"-x:22", "no host name"},
		{"a:b:c", "not host:port"},
	} {
		_, err := ParseTarget(c.in)
		if err == nil {
			t.Errorf("ParseTarget(%q) succeeded", c.in)
		} else if !strings.Contains(err.Error(), c.mend) {
			t.Errorf("ParseTarget(%q): %q does not say %q", c.in, err, c.mend)
		}
	}
}

func TestParseLocal(t *testing.T) {
	for _, c := range []struct{ in, want string }{
		{"2222", "127.0.0.1:2222"},
		{"0", "127.0.0.1:0"},
		{"0.0.0.0:8999", "0.0.0.0:8999"},
		{"[::]:8999", "[::]:8999"},
		{"localhost:80", "localhost:80"},
		{"unix:/tmp/s", "unix:/tmp/s"},
		{"53/udp", "127.0.0.1:53/udp"},
		{"[::1]:53/udp", "[::1]:53/udp"},
		{"-", "-"},
		{"", ""},
	} {
		got, err := ParseLocal(c.in)
		if err != nil {
			t.Errorf("ParseLocal(%q): %v", c.in, err)
		} else if got.String() != c.want {
			t.Errorf("ParseLocal(%q) = %s, want %s", c.in, got, c.want)
		}
	}
}

func TestLocalMistakesNameTheirMend(t *testing.T) {
	for _, c := range []struct{ in, mend string }{
		{"auto", "no port number"},
		{"53/tcp", "write /udp, or nothing"},
		{":2222", "0.0.0.0:2222"},
		{"example.com:22", "no address of this machine"},
		{"http://localhost:1", "only its port"},
		{"/tmp/s", "unix:/tmp/s"},
		{"unix:s", "whole path"},
		{"70000", "outside 1 to 65535"},
		{"::1:80", "[::1:80]:PORT"},
	} {
		_, err := ParseLocal(c.in)
		if err == nil {
			t.Errorf("ParseLocal(%q) succeeded", c.in)
		} else if !strings.Contains(err.Error(), c.mend) {
			t.Errorf("ParseLocal(%q): %q does not say %q", c.in, err, c.mend)
		}
	}
}

// What parses prints, and what is printed parses to the same.
func FuzzTarget(f *testing.F) {
	for _, s := range []string{"22", "53/udp", "host:22", "[::1]:80", "unix:/a b", "[fe80::1%25eth0]:1", "1-2", "h:1-1024/udp", "a:0"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		a, err := parseTarget(s)
		if err != nil {
			return
		}
		b, err := parseTarget(a.String())
		if err != nil || a != b || a.String() != b.String() {
			t.Fatalf("%q is %#v, prints %q, reads back as %#v, %v", s, a, a, b, err)
		}
		checkName(t, a.DefaultName())
	})
}

func FuzzLocal(f *testing.F) {
	for _, s := range []string{"2222", "0", "-", "0.0.0.0:22", "[::1]:80", "unix:/a b", "localhost:1", "53/udp", "a:1/udp", "8000-8010", "[::1]:1-2/udp"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		a, err := ParseLocal(s)
		if err != nil {
			return
		}
		b, err := ParseLocal(a.String())
		if err != nil || a != b || a.String() != b.String() {
			t.Fatalf("%q is %#v, prints %q, reads back as %#v, %v", s, a, a, b, err)
		}
	})
}

func checkName(t *testing.T, name string) {
	t.Helper()
	if name == "" || len(name) > maxName || strings.Trim(name, "abcdefghijklmnopqrstuvwxyz0123456789-") != "" {
		t.Fatalf("default name %q", name)
	}
}
