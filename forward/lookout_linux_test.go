package forward

import (
	"errors"
	"net"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

// A socketed connection is one in memory that has the kernel's view of a true one.
type socketed struct {
	*memConn
	socket *net.TCPConn
}

func (c socketed) SyscallConn() (syscall.RawConn, error) { return c.socket.SyscallConn() }

// TestAProgramThatIsGoneIsNoticedWhileNobodyReadsIt: its bytes wait for a far side that reads nothing, or it has sent its
// last to one that says nothing. Neither direction would ever learn that it was reset.
func TestAProgramThatIsGoneIsNoticedWhileNobodyReadsIt(t *testing.T) {
	for name, before := range map[string]func(program *memConn){
		"its bytes wait": func(program *memConn) {
			go program.Write(make([]byte, 4*memWindow))
		},
		"it has sent its last": func(program *memConn) {
			program.Write(make([]byte, 100))
			program.CloseWrite()
		},
	} {
		t.Run(name, func(t *testing.T) {
			for _, dies := range []bool{true, false} {
				near, far := newTCPPair(t)
				synctest.Test(t, func(t *testing.T) {
					local, program := newMemPair()
					session, server := newMemPair()
					result := startCopy(t, socketed{local, near}, session)
					before(program)
					time.Sleep(time.Minute)
					if dies {
						Reset(far)
						raw, _ := near.SyscallConn()
						for deadline := 1 << 30; !failed(raw) && deadline > 0; deadline-- {
						}
					}
					time.Sleep(lookEvery)
					synctest.Wait()
					select {
					case r := <-result:
						if !dies {
							t.Error("a program that lives was taken for dead:", r.err)
						} else if !errors.Is(r.err, errUnread) {
							t.Error(r.err)
						}
						if _, err := server.Read(make([]byte, 1)); dies && err != errReset {
							t.Error("the far side was told", err)
						}
					default:
						if dies {
							t.Error("nobody noticed")
						}
					}
					Reset(program)
					Reset(server)
				})
			}
		})
	}
}
