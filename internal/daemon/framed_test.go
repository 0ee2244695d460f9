package daemon

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"net"
	"path/filepath"
	"testing"
)

// framedPair is both ends of a control connection.
func framedPair(t *testing.T) (a, b *framed) {
	t.Helper()
	l, err := net.Listen("unix", filepath.Join(shortTemp(t), "s"))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	dialled, err := net.Dial("unix", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	accepted, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { dialled.Close(); accepted.Close() })
	end := func(c net.Conn) *framed { return &framed{Conn: c, r: bufio.NewReader(c)} }
	return end(dialled), end(accepted)
}

func TestAFramedDirectionEndsWithoutTheOther(t *testing.T) {
	a, b := framedPair(t)
	sent := bytes.Repeat([]byte("fwd"), maxFrame/2) // more than one frame
	go func() {
		a.Write(sent)
		a.CloseWrite()
	}()
	got, err := io.ReadAll(b)
	if err != nil || !bytes.Equal(got, sent) {
		t.Fatalf("%d bytes came of %d, %v", len(got), len(sent), err)
	}
	b.Write([]byte("answer"))
	b.CloseWrite()
	if got, err := io.ReadAll(a); err != nil || string(got) != "answer" {
		t.Errorf("after the half-close came %q, %v", got, err)
	}
}

func TestAFramedConnectionThatDiesIsNoCleanEnd(t *testing.T) {
	a, b := framedPair(t)
	a.Write([]byte("half of it"))
	a.Reset()
	if _, err := io.ReadAll(b); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("the end of a broken connection reads as %v", err)
	}
}

func TestAFramedConnectionThatIsRefusedSaysWhy(t *testing.T) {
	a, b := framedPair(t)
	a.Write([]byte("half of it"))
	a.fail(fail(ExitRefused, "refused", "fwd allow", "no"))
	got, err := io.ReadAll(b)
	var why *Failure
	if string(got) != "half of it" || !errors.As(err, &why) || why.Exit != ExitRefused || why.Hint != "fwd allow" {
		t.Errorf("came %q, %v", got, err)
	}
}

// FuzzFramed: whatever comes, Read returns, and gives no more than came.
func FuzzFramed(f *testing.F) {
	f.Add([]byte{0, 0, 0, 2, 'h', 'i', 0, 0, 0, 0})
	f.Add([]byte{255, 255, 255, 255})
	f.Add([]byte("\xff\xff\xff\xff\x00\x00\x00\x0a{\"exit\":4}"))
	f.Fuzz(func(t *testing.T, in []byte) {
		c := &framed{r: bufio.NewReader(bytes.NewReader(in))}
		if out, _ := io.ReadAll(c); len(out) > len(in) {
			t.Errorf("%d bytes of %d", len(out), len(in))
		}
	})
}
