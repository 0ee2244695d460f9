package forward

import (
	"bytes"
	"context"
	"encoding/binary"
	"io"
	"net"
	"testing"
	"time"

	"github.com/things-go/go-socks5/statute"
	"golang.org/x/net/proxy"
)

// newSOCKS serves an entry whose sessions come out at servers. Names that end in
// .test are there, port 9 of them is not.
func newSOCKS(t *testing.T) (addr net.Addr, servers <-chan *memConn) {
	t.Helper()
	ln := newLocalListener(t)
	opened := make(chan *memConn, 1)
	entry := &SOCKSEntry{Listener: ln, Wait: 10 * time.Second, Dial: func(ctx context.Context, host string, port int) (Conn, error) {
		switch {
		case host == "away.test":
			return nil, context.DeadlineExceeded
		case host != "nas.test":
			return nil, ErrNotAllowed
		case port == 9:
			return nil, ErrNothingThere
		}
		far, server := newMemPair()
		opened <- server
		return far, nil
	}}
	serve(t, entry.Serve)
	return ln.Addr(), opened
}

// A program that knows what it will be answered sends everything at once: the bytes
// behind the request are the session's first.
func TestSOCKSEntryLosesNothingBehindTheRequest(t *testing.T) {
	addr, servers := newSOCKS(t)
	c := dialTCP(t, addr)
	question := noise(1 << 20)
	all := append([]byte{5, 1, 0}, connectRequest("nas.test", 22)...)
	go func() { // ends with its last byte, or with the connection
		c.Write(append(all, question...))
		c.CloseWrite()
	}()
	server := <-servers
	if got, err := io.ReadAll(server); err != nil || !bytes.Equal(got, question) {
		t.Fatalf("the server reads %d bytes, %v", len(got), err)
	}
	// The other direction is still open.
	answer := noise(1 << 20)
	go func() { // ends with its last byte
		writeUnevenly(server, answer)
		server.CloseWrite()
	}()
	readExactly(t, c, 2) // no password
	if reply, err := statute.ParseReply(c); err != nil || reply.Response != statute.RepSuccess {
		t.Fatalf("reply %+v, %v", reply, err)
	}
	if got, err := io.ReadAll(c); err != nil || !bytes.Equal(got, answer) {
		t.Fatalf("the program reads %d bytes, %v", len(got), err)
	}
}

func connectRequest(host string, port uint16) []byte {
	b := append([]byte{5, statute.CommandConnect, 0, statute.ATYPDomain, byte(len(host))}, host...)
	return binary.BigEndian.AppendUint16(b, port)
}

func TestSOCKSEntryTurnsSessionResetIntoTCPReset(t *testing.T) {
	addr, servers := newSOCKS(t)
	dialer, err := proxy.SOCKS5(addr.Network(), addr.String(), nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	c, err := dialer.Dial("tcp", "nas.test:22")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	server := <-servers
	server.Write([]byte("hello"))
	readExactly(t, c, 5)
	server.Reset()
	wantReset(t, c)
}

func TestSOCKSEntryTellsWhyNot(t *testing.T) {
	addr, _ := newSOCKS(t)
	for _, c := range []struct {
		what    string
		request []byte
		want    byte
	}{
		{"another name", connectRequest("example.org", 443), statute.RepRuleFailure},
		{"an address", []byte{5, statute.CommandConnect, 0, statute.ATYPIPv4, 127, 0, 0, 1, 0, 80}, statute.RepRuleFailure},
		{"an address of version 6", append(append([]byte{5, statute.CommandConnect, 0, statute.ATYPIPv6}, net.IPv6loopback...), 0, 80), statute.RepRuleFailure},
		{"no name", connectRequest("", 80), statute.RepRuleFailure},
		{"a port that nothing has", connectRequest("nas.test", 9), statute.RepConnectionRefused},
		{"a machine that is away", connectRequest("away.test", 22), statute.RepTTLExpired},
		{"BIND", append([]byte{5, statute.CommandBind}, connectRequest("nas.test", 22)[2:]...), statute.RepCommandNotSupported},
		{"UDP ASSOCIATE", append([]byte{5, statute.CommandAssociate}, connectRequest("nas.test", 22)[2:]...), statute.RepCommandNotSupported},
	} {
		conn := dialTCP(t, addr)
		conn.SetDeadline(time.Now().Add(10 * time.Second))
		conn.Write([]byte{5, 1, 0})
		readExactly(t, conn, 2)
		conn.Write(c.request)
		if reply, err := statute.ParseReply(conn); err != nil || reply.Response != c.want {
			t.Errorf("%s: reply %d, %v, want %d", c.what, reply.Response, err, c.want)
		}
		if n, err := io.Copy(io.Discard, conn); n != 0 || err != nil {
			t.Errorf("%s: and then %d bytes, %v", c.what, n, err)
		}
	}
}

// Another protocol, such as what a web page can make a browser send, gets nowhere.
func TestSOCKSEntryRefusesOtherProtocols(t *testing.T) {
	addr, _ := newSOCKS(t)
	for _, words := range []string{"GET / HTTP/1.1\r\nHost: nas.test\r\nUser-Agent: a browser that a page sends here\r\n\r\n", "\x04\x01\x00\x50\x00\x00\x00\x01\x00nas.test\x00", "\x05\x01\x02"} {
		c := dialTCP(t, addr)
		c.SetDeadline(time.Now().Add(10 * time.Second))
		io.WriteString(c, words)
		got, _ := io.ReadAll(c)
		if string(got) != "" && string(got) != "\x05\xff" {
			t.Errorf("%q is answered %q", words, got)
		}
	}
}
