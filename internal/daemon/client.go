package daemon

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"reflect"
	"strings"
	"time"
)

// ErrNoDaemon: nobody answers on the home's socket.
var ErrNoDaemon = errors.New("no fwd daemon is running here")

// errNoService is ErrNoDaemon where the daemon is the machine's service, which no
// command starts.
var errNoService = fmt.Errorf("%w: the machine's service is stopped", ErrNoDaemon)

// maxLine bounds one line of the control API. A status of a daemon with
// 10 000 sessions is about 3 MiB.
const maxLine = 64 << 20

// A Client is one connection to the daemon, good for one Call.
type Client struct {
	Greeting Greeting
	conn     net.Conn
	r        *bufio.Reader
}

// Dial reaches the daemon of home. It fails with ErrNoDaemon at once if none runs.
func Dial(ctx context.Context, home Home) (*Client, error) {
	c, err := reach(ctx, home)
	if err != nil {
		return nil, err
	}
	if c.Greeting.API != APIVersion {
		c.conn.Close()
		return nil, &Failure{Code: "version", Exit: ExitFailed,
			What: fmt.Sprintf("daemon %s is running, this is %s, and they do not understand each other", c.Greeting.Version, Version()),
			Hint: "end it, and the next command starts the new one: fwd stop"}
	}
	return c, nil
}

// Stop tells the daemon of home to end, whatever its version. AwaitEnd waits until it has.
func Stop(ctx context.Context, home Home) error {
	c, err := reach(ctx, home)
	if err != nil {
		return err
	}
	if err := c.Call(ctx, StopRequest{}, nil); !errors.Is(err, ErrLost) {
		return err
	}
	return nil // it has ended before it could say so
}

// reach is Dial for what daemons of all versions understand.
func reach(ctx context.Context, home Home) (*Client, error) {
	noDaemon := ErrNoDaemon
	if home.System {
		noDaemon = errNoService
	}
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unix", home.Socket())
	if err != nil {
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		if home.System && errors.Is(err, fs.ErrPermission) {
			return nil, fail(ExitRefused, "not-in-group", "sudo usermod -aG fwd $USER, and log in again; or prefix the command with sudo",
				"the system's fwd is for root and the group fwd")
		}
		return nil, fmt.Errorf("%w (%s)", noDaemon, home.Socket())
	}
	c := &Client{conn: conn, r: bufio.NewReaderSize(conn, 64<<10)}
	// A daemon that is just ending accepts and never greets.
	conn.SetReadDeadline(time.Now().Add(greetTimeout))
	if err := c.readLine(&c.Greeting); err != nil {
		conn.Close()
		return nil, fmt.Errorf("%w (%s: %v)", noDaemon, home.Socket(), err)
	}
	conn.SetReadDeadline(time.Time{})
	return c, nil
}

// AwaitService waits until the machine's service, whose daemon went away, has started it
// again. The error is why it did not answer, for as long as a restart may take.
func AwaitService(ctx context.Context, home Home) error {
	until := time.After(serviceRestart)
	for {
		c, err := Dial(ctx, home)
		if err == nil {
			c.Close()
		}
		if !errors.Is(err, ErrNoDaemon) {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-until:
			return err
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// serviceRestart is how long a service that ended may take to be there again: its manager
// pauses for seconds, and a small board needs as many to start it.
const serviceRestart = 30 * time.Second

// greetTimeout is how long a daemon may take to greet: it does so from its
// accept loop, so even a machine under load does it in milliseconds.
const greetTimeout = 5 * time.Second

// Call sends the request (one of the …Request types) and hands every event to
// on (nil: dropped) until the daemon says that it is done. A refusal is a
// *Failure. When ctx ends the connection is closed and with it the wish.
// ErrLost means that the daemon went away in the middle.
func (c *Client) Call(ctx context.Context, request any, on func(Event)) error {
	defer c.conn.Close()
	stop := context.AfterFunc(ctx, func() { c.conn.Close() })
	defer stop()
	if err := c.send(request); err != nil {
		return err
	}
	for {
		e, err := c.next(ctx)
		if err != nil {
			return err
		}
		switch e.Event {
		case "done":
			return nil
		case "error":
			return e.Failure
		}
		if on != nil {
			on(e)
		}
	}
}

// ErrLost: the daemon went away before it was done.
var ErrLost = errors.New("the fwd daemon went away")

// Stream makes the call of `connect -`: once the daemon says "open", the
// connection is the session. Reads give what the far side sends; io.EOF is its
// clean end and io.ErrUnexpectedEOF a failure. CloseWrite ends our direction,
// Close alone breaks it off.
func (c *Client) Stream(ctx context.Context, request ConnectRequest, on func(Event)) (net.Conn, error) {
	stop := context.AfterFunc(ctx, func() { c.conn.Close() })
	if err := c.send(request); err != nil {
		return nil, err
	}
	for {
		e, err := c.next(ctx)
		if err != nil {
			return nil, err
		}
		switch e.Event {
		case "open":
			if !stop() {
				return nil, ctx.Err()
			}
			return &framed{Conn: c.conn, r: c.r}, nil
		case "error":
			c.conn.Close()
			return nil, e.Failure
		}
		if on != nil {
			on(e)
		}
	}
}

// Close gives up the connection.
func (c *Client) Close() error { return c.conn.Close() }

func (c *Client) send(request any) error {
	args, err := json.Marshal(request)
	if err != nil {
		return fmt.Errorf("encode request: %w", err)
	}
	line, err := json.Marshal(Request{API: APIVersion, Command: commandOf(request), Args: args})
	if err != nil {
		return fmt.Errorf("encode request: %w", err)
	}
	if _, err := c.conn.Write(append(line, '\n')); err != nil {
		return ErrLost
	}
	return nil
}

func (c *Client) next(ctx context.Context) (Event, error) {
	var e Event
	if err := c.readLine(&e); err != nil {
		if ctx.Err() != nil {
			return Event{}, ctx.Err()
		}
		return Event{}, ErrLost
	}
	return e, nil
}

func (c *Client) readLine(v any) error { return readLine(c.r, maxLine, v) }

// readLine reads one line of JSON of at most max bytes.
func readLine(r *bufio.Reader, max int, v any) error {
	var line []byte
	for {
		part, err := r.ReadSlice('\n')
		if len(line)+len(part) > max {
			return fmt.Errorf("a line of more than %d bytes", max)
		}
		line = append(line, part...)
		if err == nil {
			break
		}
		if !errors.Is(err, bufio.ErrBufferFull) {
			return err
		}
	}
	return json.Unmarshal(bytes.TrimSpace(line), v)
}

// commandOf makes "expose" of ExposeRequest and "owner-export" of OwnerExportRequest.
func commandOf(request any) string {
	name := strings.TrimSuffix(reflect.TypeOf(request).Name(), "Request")
	var b strings.Builder
	for i, r := range name {
		if i > 0 && r >= 'A' && r <= 'Z' {
			b.WriteByte('-')
		}
		b.WriteString(strings.ToLower(string(r)))
	}
	return b.String()
}
