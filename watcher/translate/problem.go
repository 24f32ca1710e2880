package translate

// maxMessage is how many bytes the message of a Problem has: what objects say is repeated in it.
const maxMessage = 1024
