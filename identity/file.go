package identity

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
)

// A DamagedError names a state file that cannot be read as what it should be.
// The file is kept as it is: it may be all there is of somebody's network.
type DamagedError struct {
	Path string
	Err  error
}

func (e *DamagedError) Error() string {
	return fmt.Sprintf("%s is damaged and was left as it is: %v (restore it from a backup, or move it away to start afresh)", e.Path, e.Err)
}

func (e *DamagedError) Unwrap() error { return e.Err }

// A ModeError names a file or folder that other users of the machine can get at.
type ModeError struct {
	Path string
	Mode fs.FileMode
	Mend string // the command that repairs it
}

func (e *ModeError) Error() string {
	return fmt.Sprintf("%s is open to other users (mode %04o); mend it with: %s", e.Path, e.Mode, e.Mend)
}

// WriteFile replaces the file at path by data, or leaves the old one: the bytes
// go to a temporary file beside it, reach the disk, and take its name. A missing
// folder is made, closed to others.
func WriteFile(path string, data []byte, mode os.FileMode) error {
	temp, err := writeTemp(path, data, mode)
	if err != nil {
		return err
	}
	if err := os.Rename(temp, path); err != nil {
		os.Remove(temp)
		return fmt.Errorf("write %s: %w", path, err)
	}
	return syncDir(filepath.Dir(path))
}

// createFile is WriteFile for a file that must not exist yet: the error then is
// fs.ErrExist. The file appears whole or not at all.
func createFile(path string, data []byte, mode os.FileMode) error {
	temp, err := writeTemp(path, data, mode)
	if err != nil {
		return err
	}
	defer os.Remove(temp)
	err = os.Link(temp, path) // unlike rename, fails when the name is taken
	if err != nil && !errors.Is(err, fs.ErrExist) {
		err = createPlain(path, data, mode) // some file systems have no links
	}
	if err != nil {
		return fmt.Errorf("create %s: %w", path, err)
	}
	return syncDir(filepath.Dir(path))
}

func createPlain(path string, data []byte, mode os.FileMode) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, mode)
	if err != nil {
		return err
	}
	if err := fill(f, data, mode); err != nil {
		os.Remove(path)
		return err
	}
	return nil
}

func writeTemp(path string, data []byte, mode os.FileMode) (temp string, err error) {
	dir := filepath.Dir(path)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", fmt.Errorf("write %s: %w", path, err)
	}
	f, err := os.CreateTemp(dir, "."+filepath.Base(path)+".*") // made 0600
	if err != nil {
		return "", fmt.Errorf("write %s: %w", path, err)
	}
	if err := fill(f, data, mode); err != nil {
		os.Remove(f.Name())
		return "", fmt.Errorf("write %s: %w", path, err)
	}
	return f.Name(), nil
}

// fill writes data to f, makes it durable and closes f in any case.
func fill(f *os.File, data []byte, mode os.FileMode) error {
	_, err := f.Write(data)
	if err == nil && runtime.GOOS != "windows" {
		err = f.Chmod(mode)
	}
	if err == nil {
		err = f.Sync()
	}
	return errors.Join(err, f.Close())
}

// syncDir makes a new name in dir durable.
func syncDir(dir string) error {
	if runtime.GOOS == "windows" { // folders cannot be synced there
		return nil
	}
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	if err := d.Sync(); err != nil {
		return fmt.Errorf("sync %s: %w", dir, err)
	}
	return nil
}

// MakeDir makes a folder for state, closed to others, or checks that an existing
// one cannot be written by them: who can swap files there can swap our key. (That
// they may list it is accepted, the files inside are 0600.)
func MakeDir(path string) error {
	if err := os.MkdirAll(path, 0o700); err != nil {
		return fmt.Errorf("make %s: %w", path, err)
	}
	info, err := os.Stat(path)
	if err != nil {
		return fmt.Errorf("make %s: %w", path, err)
	}
	if !info.IsDir() {
		return fmt.Errorf("make %s: a file is in the way", path)
	}
	if runtime.GOOS != "windows" && info.Mode().Perm()&0o022 != 0 {
		return &ModeError{Path: path, Mode: info.Mode().Perm(), Mend: "chmod 700 " + path}
	}
	return nil
}

// readPrivate reads a state file of at most max bytes, refusing one that other
// users may read or write. A missing file is fs.ErrNotExist.
func readPrivate(path string, max int64) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, &DamagedError{path, errors.New("not a regular file")}
	}
	if runtime.GOOS != "windows" && info.Mode().Perm()&0o077 != 0 {
		return nil, &ModeError{Path: path, Mode: info.Mode().Perm(), Mend: "chmod 600 " + path}
	}
	data, err := io.ReadAll(io.LimitReader(f, max+1))
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", path, err)
	}
	if int64(len(data)) > max {
		return nil, &DamagedError{path, fmt.Errorf("larger than %d bytes", max)}
	}
	return data, nil
}
