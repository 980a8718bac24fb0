/* A server that speaks as much of OpenAI's API as a test needs, in one file without a library: it goes into a container that has nothing else. */
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

static void end(int signal) { (void)signal; _exit(0); }

/* What the model's file says, whether it could be changed, and whether anybody is reached: out there, or at this port of the machine's own loopback. */
static void look(char *out, size_t room, int near) {
    char text[64] = "nothing";
    int file = open("/weights/word.txt", O_RDONLY);
    ssize_t n = file < 0 ? -1 : read(file, text, sizeof text - 1);
    if (n >= 0) text[n] = 0;
    int changed = open("/weights/word.txt", O_WRONLY) >= 0 || open("/weights/new", O_CREAT | O_WRONLY, 0600) >= 0
        || open("/new", O_CREAT | O_WRONLY, 0600) >= 0;
    int out_there = socket(AF_INET, SOCK_STREAM, 0);
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons(53), .sin_addr.s_addr = inet_addr("192.0.2.1")};
    int reached = connect(out_there, (struct sockaddr *)&to, sizeof to) == 0 || errno != ENETUNREACH;
    close(out_there);
    if (near) {
        out_there = socket(AF_INET, SOCK_STREAM, 0);
        struct sockaddr_in at = {.sin_family = AF_INET, .sin_port = htons(near), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
        reached = reached || connect(out_there, (struct sockaddr *)&at, sizeof at) == 0;
        close(out_there);
    }
    int card = open("/dev/a-card", O_RDWR);
    if (card >= 0) close(card);
    snprintf(out, room, "%s %s %s%s", text, changed ? "changed" : "kept", reached ? "reached" : "alone", card < 0 ? "" : " with a card");
}

/* As NVIDIA writes down that NIM behaves, told "nim-serve": it is told everything by its environment, needs a folder to write to, and is there long before its model is. */
static const char *nim_begins(int *port) {
    const char *model = getenv("NIM_MODEL_PATH"), *cache = getenv("NIM_CACHE_PATH"), *name = getenv("NIM_SERVED_MODEL_NAME");
    const char *told = getenv("NIM_SERVER_PORT");
    char path[256];
    if (!model || model[0] != '/' || !name || getenv("NGC_API_KEY")) _exit(3);
    snprintf(path, sizeof path, "%s/word.txt", model);
    if (open(path, O_RDONLY) < 0) _exit(4);
    if (!cache || mkdir(cache, 0700)) _exit(5);
    snprintf(path, sizeof path, "%s/manifest", cache);
    if (open(path, O_CREAT | O_WRONLY, 0600) < 0) _exit(6);
    *port = told ? atoi(told) : 8000;
    return name;
}

int main(int count, char **given) {
    signal(SIGTERM, end);
    signal(SIGPIPE, SIG_IGN);
    int port = count > 1 ? atoi(given[1]) : 8000, yes = 1, is_nim = count > 1 && !strcmp(given[1], "nim-serve"), loading = 8;
    const char *name = is_nim ? nim_begins(&port) : "toy";
    char called[256];
    snprintf(called, sizeof called, "\"model\":\"%s\"", name);
    int door = socket(AF_INET, SOCK_STREAM, 0);
    setsockopt(door, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof yes);
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_port = htons(port), .sin_addr.s_addr = htonl(is_nim ? INADDR_ANY : INADDR_LOOPBACK)};
    if (bind(door, (struct sockaddr *)&at, sizeof at) || listen(door, 16)) return 1;
    for (;;) {
        int line = accept(door, 0, 0);
        if (line < 0) continue;
        char asked[65536];
        size_t have = 0;
        char *body = 0;
        size_t length = 0;
        while (have < sizeof asked - 1) {
            ssize_t n = read(line, asked + have, sizeof asked - 1 - have);
            if (n <= 0) break;
            have += n;
            asked[have] = 0;
            if (!body && (body = strstr(asked, "\r\n\r\n"))) {
                body += 4;
                char *said = strcasestr(asked, "content-length:");
                length = said && said < body ? strtoul(said + 15, 0, 10) : 0;
            }
            if (body && (size_t)(asked + have - body) >= length) break;
        }
        char answer[1024], seen[128], whole[2048], *status = "200 OK";
        if (!strncmp(asked, "GET /v1/health/ready", 20)) {
            if (loading > 0 && loading--) status = "503 Service Unavailable";
            strcpy(answer, "{}");
        } else if (!strncmp(asked, "GET ", 4)) {
            strcpy(answer, "{}");
        } else if (is_nim && loading) {
            status = "502 Bad Gateway";
            strcpy(answer, "{}");
        } else {
            int right = body && strstr(body, called);
            look(seen, sizeof seen, !is_nim && count > 2 ? atoi(given[2]) : 0);
            snprintf(answer, sizeof answer,
                "{\"choices\":[{\"index\":0,\"finish_reason\":\"stop\",\"message\":{\"role\":\"assistant\",\"content\":\"%s %s\"}}],"
                "\"usage\":{\"prompt_tokens\":11,\"completion_tokens\":3,\"total_tokens\":14}}",
                seen, right ? "toy" : "wrong");
        }
        snprintf(whole, sizeof whole,
            "HTTP/1.1 %s\r\ncontent-type: application/json\r\ncontent-length: %zu\r\nconnection: close\r\nset-cookie: toy=1\r\n\r\n%s",
            status, strlen(answer), answer);
        for (size_t sent = 0; sent < strlen(whole);) {
            ssize_t n = write(line, whole + sent, strlen(whole) - sent);
            if (n <= 0) break;
            sent += n;
        }
        close(line);
    }
}
