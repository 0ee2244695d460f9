package daemon

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"time"
)

// startTimeout is how long a background daemon may take until it listens on
// its socket. Building the libp2p host takes 30 ms here; the rest is for small
// boards with slow cards.
const startTimeout = 30 * time.Second

// Start reaches the daemon of home, and starts it in the background first if
// none runs: this same binary, detached from the terminal, its log in the
// state folder.
func Start(ctx context.Context, home Home) (*Client, error) {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	for {
		c, err := Dial(ctx, home)
		if err == nil || !errors.Is(err, ErrNoDaemon) || errors.Is(err, errNoService) {
			return c, err
		}
		if err := launch(ctx, home); err != nil {
			return nil, err
		}
		// Either ours is ready, or another client's won the lock and will be.
		select {
		case <-ctx.Done():
			return nil, &Failure{Code: "failed", Exit: ExitFailed,
				What: fmt.Sprintf("the fwd daemon did not start within %s", startTimeout),
				Hint: "read why: " + home.Log()}
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// A readiness is the one line that a background daemon writes to its stdout:
// Failure if it cannot run, else empty. Busy means another one has the lock.
type readiness struct {
	Busy    bool     `json:"busy,omitempty"`
	Failure *Failure `json:"failure,omitempty"`
}

// launch starts `fwd daemon` and waits for its word.
func launch(ctx context.Context, home Home) error {
	exe, err := os.Executable()
	if err != nil {
		return fmt.Errorf("find this program's file to start the daemon: %w", err)
	}
	if err := home.prepare(); err != nil {
		return err
	}
	log, err := os.OpenFile(home.Log(), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return fmt.Errorf("open the daemon's log: %w", err)
	}
	defer log.Close()
	words := []string{"daemon"}
	if home.Network != "" {
		words = append(words, "--network", home.Network)
	}
	cmd := exec.Command(exe, words...)
	cmd.Dir = home.State // so that it holds no other folder busy
	// Its words say which network: FWD_NETWORK was for the command, whose -n may have said another.
	cmd.Env = append(cmd.Environ(), "FWD_NETWORK=")
	if dir := HomeFolder(); dir != "" {
		cmd.Env = append(cmd.Env, "FWD_HOME="+dir)
	}
	cmd.Stderr = log
	detach(cmd)
	out, err := cmd.StdoutPipe()
	if err != nil {
		return fmt.Errorf("start the daemon: %w", err)
	}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start the daemon: %w", err)
	}
	defer cmd.Process.Release()
	stop := context.AfterFunc(ctx, func() { out.Close() })
	defer stop()
	defer out.Close()
	var word readiness
	line, err := bufio.NewReader(out).ReadBytes('\n')
	if err == nil {
		err = json.Unmarshal(line, &word)
	}
	switch {
	case err != nil:
		return &Failure{Code: "failed", Exit: ExitFailed,
			What: "the fwd daemon ended while starting", Hint: "read why: " + home.Log()}
	case word.Failure != nil:
		return word.Failure
	}
	return nil
}

// RunBackground is the hidden command `fwd daemon`: it runs the home's daemon,
// tells its starter on stdout when it is ready, and ends 60 s after the last wish.
func RunBackground(ctx context.Context, home Home) error {
	told := false
	tell := func(r readiness) {
		if !told {
			told = true
			json.NewEncoder(os.Stdout).Encode(r)
			os.Stdout.Close()
		}
	}
	err := run(ctx, home, options{
		linger: lingerAfterLastWish,
		ready:  func() { tell(readiness{}) },
	})
	if errors.Is(err, errLocked) {
		tell(readiness{Busy: true})
		return nil
	}
	if err != nil {
		tell(readiness{Failure: failureOf(err)})
	}
	return err
}

// lingerAfterLastWish: a script that runs several commands in a row finds the
// node and its connections up; after a minute nobody is likely to come.
const lingerAfterLastWish = 60 * time.Second
